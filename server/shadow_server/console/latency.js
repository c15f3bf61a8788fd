// Latencies by adapter over the last looks at /metrics: the median of what happened between two of them.

import { number, quantile } from "./exposition.js";

const KEPT_LOOKS = 60;
const FIRST = "shadow_time_to_first_token_seconds";
const INTER = "shadow_inter_token_latency_seconds";

export class LatencyHistory {
  #previous = new Map();
  #points = new Map();

  /**
   * @param {object[]} samples of /metrics
   * @returns {Map<string, {requests: number, firstToken: (number|null)[], interToken: (number|null)[]}>}
   *   by the label `adapter`; points are medians in seconds, the newest last
   */
  take(samples) {
    const totals = totalsOf(samples);
    for (const [adapter, total] of totals) this.#add(adapter, total);
    for (const adapter of this.#points.keys()) if (!totals.has(adapter)) this.#points.delete(adapter);
    this.#previous = totals;
    return new Map([...totals].map(([adapter, total]) => [adapter, this.#describe(adapter, total)]));
  }

  #add(adapter, total) {
    const points = this.#points.get(adapter) ?? { firstToken: [], interToken: [] };
    const before = this.#previous.get(adapter);
    for (const kind of ["firstToken", "interToken"]) {
      points[kind].push(quantile(since(total[kind], before?.[kind]), 0.5));
      if (points[kind].length > KEPT_LOOKS) points[kind].shift();
    }
    this.#points.set(adapter, points);
  }

  #describe(adapter, total) {
    return { requests: total.firstToken.get(Infinity) ?? 0, ...this.#points.get(adapter) };
  }
}

function totalsOf(samples) {
  const totals = new Map();
  for (const { name, labels, value } of samples) {
    const kind = { [`${FIRST}_bucket`]: "firstToken", [`${INTER}_bucket`]: "interToken" }[name];
    if (!kind || labels.adapter === undefined) continue;
    const total = totals.get(labels.adapter) ?? { firstToken: new Map(), interToken: new Map() };
    totals.set(labels.adapter, total);
    const bound = number(labels.le);
    total[kind].set(bound, (total[kind].get(bound) ?? 0) + value);
  }
  return totals;
}

/** What was added; a counter that fell began anew, and counts from zero. */
function since(now, before) {
  if (!before || (before.get(Infinity) ?? 0) > (now.get(Infinity) ?? 0)) return now;
  return new Map([...now].map(([bound, count]) => [bound, count - (before.get(bound) ?? 0)]));
}
