// The playground: one prompt, several answers at once, each as it comes, all of which can be stopped.

import { element, find, keepChildren, setText } from "./element.js";
import { eventsOf } from "./event_stream.js";
import { ask, Problem } from "./session.js";
import { spellSeconds } from "./sparkline.js";

const BASE = "base model";

let running = null;
let tellRates = () => {};

/** @param {(headers: Headers) => void} onHeaders gets the headers of every answer */
export function openPlayground(onHeaders) {
  tellRates = onHeaders;
  find("ask-form").addEventListener("submit", start);
  find("stop").addEventListener("click", stopStreams);
  addEventListener("pagehide", stopStreams);
}

/** End every stream; the server stops generating for clients that left. */
export function stopStreams() {
  running?.abort();
}

/** Offer the adapters that answer; a choice that is gone is dropped. */
export function offerAdapters(cards) {
  const names = cards.filter((card) => card.state !== "DRAINING").map((card) => card.id);
  const options = new Map([["", "none"], ...[...new Set(names)].sort().map((name) => [name, name])]);
  for (const select of document.querySelectorAll(".ask-adapter")) {
    keepChildren(select, new Map([...options].map(([key, label]) => [key, { key, label }])), makeOption, (child, option) => {
      child.value = option.key;
      setText(child, option.label);
    });
  }
}

const makeOption = () => element("option");

function chosen() {
  const named = [...document.querySelectorAll(".ask-adapter")].map((select) => select.value);
  const adapters = [...new Set(named.filter(Boolean))];
  return find("ask-base").checked ? [null, ...adapters] : adapters;
}

async function start(event) {
  event.preventDefault();
  stopStreams();
  const control = new AbortController();
  running = control;
  const panes = chosen().map((adapter) => ({ adapter, pane: makePane(adapter ?? BASE) }));
  find("panes").replaceChildren(...panes.map(({ pane }) => pane));
  showRunning(true);
  const fields = await requestFields(control.signal);
  await Promise.all(panes.map(({ adapter, pane }) => run(pane, { ...fields, adapter }, control.signal)));
  if (running === control) showRunning(false);
}

function showRunning(isRunning) {
  find("stop").disabled = !isRunning;
  find("ask").textContent = isRunning ? "Ask again" : "Ask";
}

async function requestFields(signal) {
  return {
    ...(await baseModel(signal)),
    prompt: find("prompt").value,
    max_tokens: find("max-tokens").valueAsNumber,
    temperature: find("temperature").valueAsNumber,
    stream: true,
  };
}

/** The base model's name, where the key may know it. */
async function baseModel(signal) {
  try {
    const { data } = await (await ask("v1/models", { signal })).json();
    const base = data.find((card) => card.parent === null);
    return base ? { model: base.id } : {};
  } catch {
    return {};
  }
}

function makePane(name) {
  return element(
    "article",
    { class: "pane", "aria-busy": "true" },
    element("h3", {}, name),
    element("pre", { tabindex: "0", "aria-label": `Answer of ${name}` }),
    element("p", { class: "note figures" }),
    element("p", { class: "note outcome", role: "status" }),
  );
}

async function run(pane, body, signal) {
  const outcome = pane.querySelector(".outcome");
  try {
    const answer = await follow(pane, body, signal);
    setText(outcome, answer);
  } catch (error) {
    const isStopped = error.name === "AbortError";
    if (!isStopped && !(error instanceof Problem)) console.error(error);
    outcome.classList.toggle("problem", !isStopped);
    setText(outcome, isStopped ? "Stopped." : error.message);
  }
  pane.setAttribute("aria-busy", "false");
}

async function follow(pane, body, signal) {
  const watch = new StreamWatch();
  const answer = await ask("v1/completions", { signal, body });
  tellRates(answer.headers);
  showSpeaker(pane, answer.headers);
  for await (const { data } of eventsOf(answer)) {
    if (data === "[DONE]") return "Done.";
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Problem(200, chunk.error.code, chunk.error.message);
    const text = chunk.choices[0]?.text ?? "";
    if (text) watch.tick();
    pane.querySelector("pre").append(text);
    setText(pane.querySelector(".figures"), watch.describe());
  }
  throw new Problem(0, null, "The stream broke off.");
}

function showSpeaker(pane, headers) {
  const version = headers.get("x-shadow-adapter-version");
  if (version === null) return;
  pane.querySelector("h3").append(` version ${version}`);
  pane.title = headers.get("x-shadow-adapter-digest") ?? "";
}

/** Times as this browser sees them, the network's share included. */
class StreamWatch {
  #begun = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  tick() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  describe() {
    if (this.#first === null) return "";
    const first = `first token after ${spellSeconds((this.#first - this.#begun) / 1000)}`;
    if (this.#pieces < 2) return first;
    const inter = (this.#last - this.#first) / (this.#pieces - 1) / 1000;
    return `${first}, then one every ${spellSeconds(inter)}; ${this.#pieces} pieces`;
  }
}
