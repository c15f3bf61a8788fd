// Prometheus' text format, and quantiles of its histograms.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([A-Za-z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/**
 * @param {string} text
 * @param {string} prefix of the names that are wanted
 * @returns {{name: string, labels: Record<string, string>, value: number}[]}
 */
export function readSamples(text, prefix = "") {
  return text
    .split("\n")
    .filter((line) => line.startsWith(prefix) && !line.startsWith("#"))
    .map((line) => SAMPLE.exec(line))
    .filter(Boolean)
    .map(([, name, labels, value]) => ({ name, labels: readLabels(labels), value: number(value) }));
}

function readLabels(text) {
  const found = {};
  for (const [, name, value] of (text ?? "").matchAll(LABEL)) found[name] = plain(value);
  return found;
}

const plain = (value) => value.replace(/\\(.)/g, (_, sign) => (sign === "n" ? "\n" : sign));

export const number = (text) => (text === "+Inf" ? Infinity : Number(text));

/**
 * What Prometheus' histogram_quantile estimates, in the series' unit.
 * @param {Map<number, number>} buckets cumulative counts by upper bound, Infinity among them
 * @param {number} ratio 0.5 for the median
 * @returns {number | null} null without observations
 */
export function quantile(buckets, ratio) {
  const bounds = [...buckets.keys()].sort((a, b) => a - b);
  const total = bounds.length ? buckets.get(bounds.at(-1)) : 0;
  if (!(total > 0)) return null;
  let lower = 0;
  let below = 0;
  for (const bound of bounds) {
    const count = buckets.get(bound);
    if (count >= ratio * total) return inside(lower, bound, (ratio * total - below) / (count - below));
    lower = bound;
    below = count;
  }
  return lower;
}

function inside(lower, upper, share) {
  return upper === Infinity || !Number.isFinite(share) ? lower : lower + (upper - lower) * share;
}
