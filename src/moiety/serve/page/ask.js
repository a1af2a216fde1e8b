// The key, requests to the public API, and their failures in plain words.
// What comes from the server is hostile: it is put on the page by textContent, and nowhere else.
"use strict";

const KEY_PLACE = "moiety-key";
let key = sessionStorage.getItem(KEY_PLACE) ?? "";

function takeKey(given, keep) {
  key = given;
  if (keep) sessionStorage.setItem(KEY_PLACE, given);
  else sessionStorage.removeItem(KEY_PLACE);
}

// What a request was refused with. `retry` is in seconds, where the server said when.
class Refused extends Error {
  constructor(status, error, retry) {
    super(String(error?.message ?? "no reason was given"));
    this.status = status;
    this.code = String(error?.code ?? "");
    this.retry = retry;
    this.at = performance.now();
  }
}

// Until a request that was refused may be made again: when the server said, or a second later.
function pause(refused, signal) {
  const whole = 1000 * (Number.parseInt(refused.retry ?? "", 10) || 1);
  return new Promise((done, stopped) => {
    signal.throwIfAborted();
    const timer = setTimeout(done, whole - (performance.now() - refused.at));
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      stopped(signal.reason);
    });
  });
}

async function ask(path, how = {}) {
  const headers = { ...how.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  const answer = await fetch(path, { ...how, headers, cache: "no-store", credentials: "omit" });
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, body.error, answer.headers.get("Retry-After"));
}

async function get(path) {
  return (await ask(path)).json();
}

// An error within a stream has no status of its own.
const STATUSES = { authentication_error: 401, permission_error: 403, server_error: 500 };

// The chunks of a streamed completion. One that tells an error is thrown.
async function* completion(body, signal) {
  const headers = { "Content-Type": "application/json" };
  const how = { method: "POST", headers, body: JSON.stringify(body), signal };
  const answer = await ask("/v1/completions", how);
  for await (const event of events(answer.body)) {
    if (event === "[DONE]") return;
    const chunk = JSON.parse(event);
    if (chunk.error) throw new Refused(STATUSES[chunk.error.type] ?? 400, chunk.error, null);
    yield chunk;
  }
  throw new TypeError("the stream ended too early");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (held + value).split("\n\n");
    held = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

// Every failure as a sentence for a person.
function inWords(error) {
  if (error.name === "AbortError") return "Stopped.";
  if (!(error instanceof Refused)) {
    return "The connection to the server broke. Is it still running?";
  }
  const told = error.message;
  if (error.status === 401) {
    return "The server does not know this key, or no longer. Enter another one.";
  }
  if (error.status === 429) {
    return `Too much at once: ${told}. Try again in ${seconds(error.retry)}.`;
  }
  if (error.code === "expert_withdrawn") return `An expert has left: ${told}.`;
  if (error.status === 403) return `Not allowed: ${told}.`;
  if (error.status === 503) return `Not ready: ${told}.`;
  if (error.status >= 500) return `The server failed: ${told}.`;
  return `The request was refused: ${told}.`;
}

function seconds(retry) {
  const count = Number.parseInt(retry ?? "", 10);
  if (!Number.isFinite(count)) return "a moment";
  return count === 1 ? "1 second" : `${count} seconds`;
}

function byId(id) {
  return document.getElementById(id);
}

function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function percent(share) {
  return `${(100 * share).toFixed(share >= 0.0005 && share < 0.0995 ? 1 : 0)}\u00a0%`;
}

// Each expert has one colour on the whole page: the anchor grey, then a palette whose turns differ
// in their line.
const COLOURS = 7;
const LINES = ["solid", "dashed", "dotted", "double"];
const places = new Map([["anchor", 0]]);

function paint(node, name) {
  if (!places.has(name)) places.set(name, places.size);
  const place = places.get(name);
  const hue = place && 1 + ((place - 1) % COLOURS);
  const turn = place && Math.floor((place - 1) / COLOURS) % LINES.length;
  node.style.setProperty("--hue", `var(--hue-${hue})`);
  node.style.setProperty("--line", LINES[turn]);
  return node;
}
