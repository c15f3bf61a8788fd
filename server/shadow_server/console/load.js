// Loading an adapter: files chosen or dropped, sent with their progress, then the server's own events.

import { element, find } from "./element.js";
import { EventParser } from "./event_stream.js";
import { addressOf, headersOf, problemOf, readKey } from "./session.js";

const STAGES = {
  reading: "Reading",
  validated: "Checked",
  loading: "Loading",
  registered: "Registered",
  resident: "Resident",
};

/** What the server takes of an adapter; a trainer's folder holds more, and the server refuses what it does not know. */
export const ADAPTER_FILES = [
  "adapter_config.json",
  "adapter_model.safetensors",
  "config.json",
  "model.safetensors",
  "shadow_adapter.safetensors",
  "shadow_config.json",
  "shadow_modules.safetensors",
];
// May be the base's weights; it counts only where nothing else can.
const TRAINER_FILE = "model.safetensors";
const OWN_TENSOR_FILES = ["adapter_model.safetensors", "shadow_adapter.safetensors"];

let files = new Map();
let request = null;
let onLoaded = () => {};

/** @param {() => void} whenLoaded is called when an adapter has been published */
export function openLoad(whenLoaded) {
  onLoaded = whenLoaded;
  find("load-files").addEventListener("change", takeChosen);
  find("load-form").addEventListener("submit", start);
  find("load-cancel").addEventListener("click", () => request?.abort());
  const drop = find("drop");
  drop.addEventListener("dragover", allowDrop);
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", takeDropped);
  // A file that misses the field would replace the page.
  for (const kind of ["dragover", "drop"]) addEventListener(kind, (event) => event.preventDefault());
}

function allowDrop(event) {
  event.preventDefault();
  find("drop").classList.add("over");
}

function takeChosen() {
  choose([...find("load-files").files]);
  find("load-files").value = "";
}

async function takeDropped(event) {
  event.preventDefault();
  find("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.());
  const folder = entries.find((entry) => entry?.isDirectory);
  if (folder) suggestName(folder.name);
  // Taken before anything is awaited: the browser empties the event then.
  const plain = [...event.dataTransfer.files].filter((_, index) => !entries[index]?.isDirectory);
  choose(plain.concat(folder ? await filesIn(folder) : []));
}

async function filesIn(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break;
    found.push(...some.filter((entry) => entry.isFile && !entry.name.startsWith(".")));
  }
  return Promise.all(adapterFiles(found).map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
}

/** Of a folder's files those of an adapter; all of them where there is none, so that the server says why not. */
export function adapterFiles(found) {
  const known = found.filter(({ name }) => ADAPTER_FILES.includes(name));
  const hasOwn = known.some(({ name }) => OWN_TENSOR_FILES.includes(name));
  const wanted = known.filter(({ name }) => !hasOwn || name !== TRAINER_FILE);
  return wanted.length ? wanted : found;
}

function suggestName(name) {
  if (!find("load-name").value) find("load-name").value = name;
}

function choose(more) {
  for (const file of more) files.set(file.name, file);
  showChosen();
}

function showChosen() {
  find("chosen").replaceChildren(...[...files.values()].map(makeItem));
}

function makeItem(file) {
  const remove = element("button", { type: "button", "aria-label": `Remove ${file.name}` }, "Remove");
  remove.addEventListener("click", () => {
    files.delete(file.name);
    showChosen();
    find("load-files").focus();
  });
  return element("li", {}, element("span", {}, `${file.name}, ${file.size} bytes`), remove);
}

function start(event) {
  event.preventDefault();
  find("load-stages").replaceChildren();
  find("load-progress").hidden = false;
  if (!files.size) {
    tell("Choose the adapter's files first.", true);
    return;
  }
  find("load-bar").value = 0;
  send(formOf(find("load-name").value.trim()));
  showSending(true);
}

function formOf(name) {
  const form = new FormData();
  form.append("name", name);
  form.append("stream", "true");
  for (const file of files.values()) form.append("file", file, file.name);
  return form;
}

// XMLHttpRequest: fetch does not tell how much it has sent.
function send(form) {
  request = new XMLHttpRequest();
  request.open("POST", addressOf("v1/adapters"));
  for (const [name, value] of Object.entries(headersOf(readKey()))) request.setRequestHeader(name, value);
  request.upload.addEventListener("progress", showSent);
  request.upload.addEventListener("load", () => (find("load-bar").value = 1));
  const progress = new ProgressReader(request);
  request.addEventListener("progress", () => progress.read());
  request.addEventListener("load", () => progress.finish());
  request.addEventListener("error", () => tell("The server does not answer.", true));
  request.addEventListener("abort", () => tell("Cancelled.", true));
  request.addEventListener("loadend", () => showSending(false));
  request.send(form);
}

function showSent(event) {
  if (event.lengthComputable) find("load-bar").value = event.loaded / event.total;
}

function showSending(isSending) {
  find("load-start").disabled = isSending;
  find("load-cancel").disabled = !isSending;
}

/** Reads the server's events out of an answer that is still coming. */
class ProgressReader {
  #request;
  #parser = new EventParser();
  #numRead = 0;
  #isOver = false;

  constructor(request) {
    this.#request = request;
  }

  read() {
    if (this.#request.status !== 200) return;
    const text = this.#request.responseText;
    const events = this.#parser.take(text.slice(this.#numRead));
    this.#numRead = text.length;
    events.forEach((event) => this.#show(event));
  }

  finish() {
    const { status, responseText } = this.#request;
    if (status !== 200) {
      tell(problemOf(status, responseText).message, true);
      return;
    }
    this.read();
    if (!this.#isOver) tell("The server's answer broke off.", true);
  }

  #show({ event, data }) {
    if (data === "[DONE]") return;
    const details = JSON.parse(data);
    this.#isOver ||= event === "published" || event === "error";
    if (event === "error") tell(details.error.message, true);
    else if (event === "published") finishLoad(details);
    else tell(STAGES[event] ?? event, false);
  }
}

function finishLoad(card) {
  tell(`${card.id} version ${card.version} answers.`, false);
  files = new Map();
  showChosen();
  onLoaded();
}

function tell(text, isProblem) {
  const stages = find("load-stages");
  if (stages.lastElementChild?.textContent === text) return;
  stages.append(element("li", isProblem ? { class: "problem" } : {}, text));
}
