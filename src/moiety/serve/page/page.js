// The page: who is here, what is asked of both sets, and what follows from a key.
"use strict";

const panes = [new Pane("A", byId("panes"), true), new Pane("B", byId("panes"), false)];

async function open() {
  if (!key && "keys" in document.body.dataset) return askForKey();
  await attempt(async () => {
    await tellRoster();
    byId("key-part").hidden = true;
    byId("inside").hidden = byId("parts").hidden = false;
    byId("forget").hidden = !key;
    await tellUsage();
  });
}

async function attempt(what) {
  byId("problem").hidden = true;
  byId("inside").ariaBusy = "true";
  try {
    await what();
  } catch (error) {
    complain(error);
  }
  byId("inside").ariaBusy = "false";
}

// What the page as a whole cannot do; without a key that fits, it asks for one.
function complain(error) {
  if (error.status === 401) askForKey();
  byId("problem").textContent = inWords(error);
  byId("problem").hidden = false;
}

function askForKey() {
  byId("inside").hidden = byId("parts").hidden = byId("forget").hidden = true;
  byId("key-part").hidden = false;
  byId("key").focus();
}

function forget() {
  for (const pane of panes) pane.stop();
  takeKey("", false);
  location.reload(); // nothing that the key has shown stays
}

// ---- the roster ----

const NONE = "–";

async function tellRoster() {
  const purpose = byId("purpose").value;
  const roster = await get(`/v1/roster${purpose ? `?purpose=${encodeURIComponent(purpose)}` : ""}`);
  if (purpose !== byId("purpose").value) return; // asked for another one meanwhile
  for (const { name } of roster.experts) paint(element("span"), name); // colours in slot order
  byId("model").textContent = roster.model;
  document.title = `${roster.model} · Moiety playground`;
  byId("digest").textContent = roster.roster;
  byId("no-tints").hidden = roster.routing;
  byId("experts").replaceChildren(...roster.experts.map(rosterRow));
  tellPurposes(roster);
  for (const pane of panes) pane.show(roster);
}

function rosterRow(expert) {
  const row = paint(element("tr"), expert.name);
  const terms = expert.terms;
  const name = cell("Expert", "", "th");
  name.append(element("span", "", "swatch"), ` ${expert.name}`);
  const state = cell("State", expert.name === "anchor" ? "public" : expert.state);
  if (expert.state !== "served") state.className = "gone";
  const purposes = cell("Purposes", terms?.purposes.join(", ") ?? NONE);
  const until = cell("Until", terms ? (terms.expires ?? "no last day") : NONE);
  const bundle = cell("Bundle", expert.bundle ? "" : NONE);
  if (expert.bundle) bundle.append(element("code", expert.bundle));
  row.append(name, state, purposes, until, cell("Licence", terms?.licence ?? NONE), bundle);
  return row;
}

function cell(label, text = "", tag = "td") {
  const made = element(tag, text, text === NONE ? "none" : "");
  made.dataset.label = label;
  return made;
}

// What the key may name: with "any" whatever an owner has allowed something for.
function tellPurposes(roster) {
  const allowed = roster.experts.flatMap((expert) => expert.terms?.purposes ?? []);
  const any = roster.purposes.includes("any");
  const names = new Set((any ? allowed : roster.purposes).filter((name) => name !== "any"));
  const select = byId("purpose");
  const options = [...names].sort().map((name) => new Option(name, name));
  // A key that may name one purpose alone asks for that one, said or not.
  if (any || names.size !== 1) options.unshift(new Option("none said", ""));
  select.replaceChildren(...options);
  select.value = roster.purpose ?? "";
}

// ---- asking ----

async function run() {
  const question = {
    prompt: byId("prompt").value,
    max_tokens: byId("max-tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    seed: Math.floor(Math.random() * 2 ** 31), // both sets draw alike
    purpose: byId("purpose").value,
  };
  byId("stop").ariaDisabled = "false";
  const failures = await Promise.all(panes.map((pane) => pane.run(question)));
  // What was too much at once is asked again, one set after the other.
  for (const [place, pane] of panes.entries()) {
    if (failures[place]?.status !== 429) continue;
    failures[place] = await pane.again(question, failures[place]);
  }
  if (panes.some((pane) => pane.root.classList.contains("busy"))) return; // asked anew meanwhile
  byId("stop").ariaDisabled = "true";
  const lost = failures.find((error) => error?.status === 401);
  if (lost) complain(new Refused(401, null, null));
  else await open();
}

function stop() {
  for (const pane of panes) pane.stop();
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
byId("ask").addEventListener("invalid", () => panes.forEach((pane) => pane.notAsked()), true);
byId("stop").addEventListener("click", stop);
byId("forget").addEventListener("click", forget);
byId("purpose").addEventListener("change", open);
for (const name of ["measure", "hours"]) {
  byId(name).addEventListener("change", () => attempt(tellUsage));
}
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  takeKey(byId("key").value, byId("keep").checked);
  byId("key").value = "";
  open();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !byId("inside").hidden) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
open();
