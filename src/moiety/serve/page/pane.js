// One of the two sets of experts: its switches, its answer as it streams, and what was measured.
"use strict";

class Pane {
  constructor(letter, place, everybody) {
    this.letter = letter;
    this.everybody = everybody; // whether experts are on until somebody says otherwise
    this.wishes = new Map();
    this.boxes = new Map();
    this.root = byId("pane").content.cloneNode(true).firstElementChild;
    this.find("h2").textContent = `Set ${letter}`;
    this.find("legend").textContent = `Experts of set ${letter}`;
    this.answer = this.find(".answer");
    this.answer.setAttribute("aria-label", `Answer ${letter}; arrow keys walk through its tokens`);
    this.answer.addEventListener("keydown", (event) => this.walk(event));
    for (const kind of ["pointerover", "click"]) {
      this.answer.addEventListener(kind, (event) => this.point(event.target));
    }
    place.append(this.root);
  }

  find(selector) {
    return this.root.querySelector(selector);
  }

  // ---- the switches ----

  show(roster) {
    this.roster = roster;
    this.boxes.clear();
    const rows = roster.experts.map((expert) => this.row(expert));
    this.find(".experts").replaceChildren(...rows);
    this.tellModel();
    this.tellShares(this.shares ?? null);
  }

  row(expert) {
    const row = byId("expert").content.cloneNode(true).firstElementChild;
    const box = row.querySelector("input");
    const fixed = expert.name === "anchor" || this.roster.bound;
    const wish = this.wishes.get(expert.name) ?? this.everybody;
    box.checked = fixed || (wish && expert.why_not === null);
    box.disabled = fixed || expert.why_not !== null;
    box.addEventListener("change", () => {
      this.wishes.set(expert.name, box.checked);
      this.tellModel();
    });
    row.dataset.name = expert.name;
    row.querySelector(".name").textContent = expert.name;
    const why = row.querySelector(".why");
    why.textContent = expert.why_not ?? (this.roster.bound ? "fixed by your key" : "always on");
    why.hidden = expert.why_not === null && !fixed;
    why.id = `why-${this.letter}-${this.boxes.size}`;
    if (!why.hidden) box.setAttribute("aria-describedby", why.id);
    this.boxes.set(expert.name, box);
    return paint(row, expert.name);
  }

  // In slot order, the anchor first: the order of the weights in an answer.
  get chosen() {
    return [...this.boxes].filter(([, box]) => box.checked).map(([name]) => name);
  }

  get model() {
    const own = this.chosen.filter((name) => name !== "anchor");
    if (this.roster.bound) return this.roster.model;
    return `${this.roster.model}+${own.length ? own.join("+") : "anchor"}`;
  }

  tellModel() {
    this.find(".id code").textContent = `model="${this.model}"`;
  }

  // ---- an answer ----

  stop() {
    this.running?.abort();
  }

  // Asks, and shows what comes until it ends. Returns the failure, if there was one; after one of
  // too much at once the pane waits for `again`.
  run(question) {
    this.stop();
    this.question = question;
    this.names = this.chosen;
    this.running = new AbortController();
    return this.attempt(null);
  }

  // Asks once more, as soon as the server said, unless something else was asked meanwhile.
  async again(question, refused) {
    return this.question === question ? this.attempt(refused) : refused;
  }

  async attempt(refused) {
    const { question, running } = this;
    try {
      if (refused) await pause(refused, running.signal);
      this.begin(question.prompt);
      for await (const chunk of completion(this.body(question), running.signal)) {
        if (this.running === running) this.take(chunk);
      }
      if (this.running === running) this.end("Done.");
      return null;
    } catch (error) {
      if (this.running !== running) return error;
      if (error.status === 429 && !refused) this.wait(error);
      else this.fail(error);
      return error;
    }
  }

  body({ purpose, ...rest }) {
    const moiety = { routing: this.roster.routing };
    if (!this.roster.bound) moiety.experts = this.names.filter((name) => name !== "anchor");
    if (purpose) moiety.purpose = purpose;
    const how = { stream: true, stream_options: { include_usage: true } };
    return { ...rest, ...how, model: this.roster.model, moiety };
  }

  begin(prompt) {
    this.sums = this.names.map(() => 0);
    this.weights = new Map();
    this.count = 0;
    this.current = null;
    this.began = performance.now();
    this.answer.replaceChildren(element("span", prompt, "prompt"));
    this.find(".weights").textContent = "";
    this.find(".meter").textContent = "";
    this.find(".error").hidden = true;
    this.find(".status").textContent = "Answering…";
    this.root.classList.add("busy");
    this.tellShares(null);
  }

  take(chunk) {
    for (const choice of chunk.choices) this.add(choice.text, choice.moiety?.routing ?? []);
    const told = chunk.moiety;
    if (told?.shares) this.tellShares(this.names.map((name) => told.shares[name]));
    if (chunk.usage) this.count = chunk.usage.completion_tokens;
    if (told) this.used = told;
    this.tellMeter(chunk.usage ? told : null);
  }

  // A piece of text and the weights of its tokens: most often one, more where only all of them
  // together make a character.
  add(text, rows) {
    this.count += this.roster.routing ? rows.length : text ? 1 : 0;
    for (const row of rows) row.forEach((weight, place) => (this.sums[place] += weight));
    if (rows.length) this.tellShares(this.means());
    if (!text) return;
    const token = element("span", text, "token");
    if (rows.length) this.tint(token, rows);
    this.answer.append(token);
  }

  tint(token, rows) {
    const means = this.names.map((_, place) => mean(rows.map((row) => row[place])));
    const most = means.indexOf(Math.max(...means));
    this.weights.set(token, means);
    token.dataset.expert = this.names[most];
    token.title = this.inWords(means);
    token.style.setProperty("--weight", means[most].toFixed(3));
    paint(token, this.names[most]);
  }

  means() {
    const total = this.sums.reduce((sum, one) => sum + one, 0);
    return total > 0 ? this.sums.map((sum) => sum / total) : null;
  }

  end(words) {
    this.find(".status").textContent = `${words} Used: ${this.used.experts.join(", ")}.`;
    this.root.classList.remove("busy");
  }

  notAsked() {
    if (this.root.classList.contains("busy")) return;
    this.find(".status").textContent = "Not asked: a field above does not hold.";
    this.find(".error").hidden = true;
  }

  wait(refused) {
    const when = `in ${seconds(refused.retry)} at the earliest`;
    const words = `${refused.message}. Asked again after the other set, ${when}.`;
    this.find(".status").textContent = `Too much at once: ${words}`;
  }

  fail(error) {
    this.root.classList.remove("busy");
    const stopped = error.name === "AbortError";
    this.find(".status").textContent = stopped ? "Stopped." : "No whole answer.";
    this.find(".error").textContent = stopped ? "" : inWords(error);
    this.find(".error").hidden = stopped;
  }

  // ---- what is told of an answer ----

  tellShares(shares) {
    this.shares = shares;
    for (const row of this.root.querySelectorAll(".expert")) {
      const place = this.names?.indexOf(row.dataset.name) ?? -1;
      const share = shares && place >= 0 ? shares[place] : null;
      row.querySelector(".share").textContent = share === null ? "" : percent(share);
      row.style.setProperty("--share", share ?? 0);
    }
  }

  tellMeter(used) {
    const speed = (1000 * this.count) / (performance.now() - this.began);
    const parts = [`${this.count} tokens`, `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`];
    const meter = this.find(".meter");
    meter.textContent = parts.join(" · ");
    if (!used) return;
    const digest = element("code", used.roster.slice(0, 12));
    digest.title = used.roster;
    meter.append(" · roster ", digest);
  }

  inWords(means) {
    const told = this.names.map((name, place) => [name, means[place]]);
    told.sort((a, b) => b[1] - a[1]);
    return told.map(([name, weight]) => `${name} ${percent(weight)}`).join(", ");
  }

  // ---- a token's weights, by pointer, finger and keyboard ----

  point(token) {
    if (!this.weights?.has(token)) return;
    this.current?.classList.remove("current");
    this.current = token;
    token.classList.add("current");
    const shown = token.textContent.replaceAll("\n", "↵");
    this.find(".weights").textContent = `“${shown}” ${this.inWords(this.weights.get(token))}`;
  }

  walk(event) {
    const tokens = [...(this.weights?.keys() ?? [])];
    const here = tokens.indexOf(this.current);
    const last = tokens.length - 1;
    const there = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
    if (there === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    this.point(tokens[Math.min(Math.max(there, 0), last)]);
  }
}

function mean(numbers) {
  return numbers.reduce((sum, one) => sum + one, 0) / numbers.length;
}
