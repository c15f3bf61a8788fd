// The page: asks again and again what the key may see, and hands it to the parts.

import { showAdapters } from "./adapters.js";
import { find, setText } from "./element.js";
import { readSamples } from "./exposition.js";
import { LatencyHistory } from "./latency.js";
import { openLoad } from "./load.js";
import { offerAdapters, openPlayground, stopStreams } from "./playground.js";
import { ask, isKey, keepKey, readKey } from "./session.js";
import { ratesOf, showTenants } from "./tenants.js";

const LOOK_MILLISECONDS = 2000;
const PATIENCE_MILLISECONDS = 10000;
const FORBIDDEN = 403;
const UNKNOWN_KEY = 401;

let timer;
let look = null;

/** What one key sees, until another is used. */
class Look {
  #history = new LatencyHistory();
  #mayMeasure = true;
  rates = [];
  isBusy = false;

  async again() {
    const [{ data }, samples] = await Promise.all([listed(), this.#measured()]);
    if (look !== this) return;
    showAdapters(data, samples && this.#history.take(samples));
    offerAdapters(data);
    showTenants(data, samples, this.rates);
    showRights(samples !== null);
    showProblem("");
    say(`${data.length} ${data.length === 1 ? "adapter" : "adapters"}`);
  }

  /** The server's own series, null when the key may not see them. */
  async #measured() {
    if (!this.#mayMeasure) return null;
    try {
      return readSamples(await (await ask("metrics", soon())).text(), "shadow_");
    } catch (problem) {
      if (problem.status !== FORBIDDEN) throw problem;
      this.#mayMeasure = false;
      return null;
    }
  }
}

const listed = async () => (await ask("v1/adapters", soon())).json();

const soon = () => ({ signal: AbortSignal.timeout(PATIENCE_MILLISECONDS) });

/** Drop what an earlier key was asking for, and look with the present one. */
function restart() {
  look = new Look();
  run(look);
}

async function run(mine) {
  clearTimeout(timer);
  // Answers that overtake one another would make counters fall.
  if (mine.isBusy) return;
  mine.isBusy = true;
  const isKnown = await attempt(mine);
  mine.isBusy = false;
  if (look === mine && isKnown && !document.hidden) timer = setTimeout(run, LOOK_MILLISECONDS, mine);
}

/** @returns {Promise<boolean>} whether the server knows the key */
async function attempt(mine) {
  try {
    await mine.again();
  } catch (problem) {
    const isKnown = problem.status !== UNKNOWN_KEY;
    if (look !== mine) return isKnown;
    if (isKnown) showProblem(problem.message);
    else showNothing();
    return isKnown;
  }
  return true;
}

function showNothing() {
  showAdapters([], null);
  offerAdapters([]);
  showTenants([], null, []);
  find("no-adapters").hidden = true;
  for (const note of ["latency-note", "tenants-note"]) setText(find(note), "");
  say("");
  const isGiven = readKey() !== "";
  showProblem(isGiven ? "The server does not know this key." : "This server asks for a key.");
}

function showRights(mayMeasure) {
  const latency = mayMeasure
    ? "Medians of what happened between two looks, one every two seconds."
    : "Latencies need an admin's key: they show every tenant's traffic.";
  const tenants = mayMeasure
    ? ""
    : "Other tenants need an admin's key. Your own rates show after an answer in the playground, where you have any.";
  setText(find("latency-note"), latency);
  setText(find("tenants-note"), tenants);
}

const say = (text) => setText(find("status"), text);

function showProblem(text) {
  find("alert").hidden = !text;
  setText(find("alert"), text);
}

function useKey(event) {
  event.preventDefault();
  changeKey(find("key").value.trim());
}

function changeKey(key) {
  if (!isKey(key)) {
    showProblem("That is no key: a key has no spaces and no letters beyond ASCII.");
    return;
  }
  stopStreams();
  find("panes").replaceChildren();
  keepKey(key);
  find("key").value = "";
  restart();
}

find("key-form").addEventListener("submit", useKey);
find("forget").addEventListener("click", () => changeKey(""));
document.addEventListener("visibilitychange", () => document.hidden || run(look));
openPlayground((headers) => {
  look.rates = ratesOf(headers);
});
openLoad(() => run(look));
restart();
