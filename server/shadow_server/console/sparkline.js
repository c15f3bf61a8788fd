// A small line of the last points. What it shows is also said in words, for those who do not see it.

import { drawing, element, setText } from "./element.js";

const WIDTH = 120;
const HEIGHT = 26;
const MARGIN = 3;

export function sparkline(name) {
  const size = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" };
  return element("div", { class: `spark ${name}` }, drawing("svg", size), element("span"));
}

/**
 * @param {Element} box of `sparkline`
 * @param {(number|null)[]} points seconds, the newest last; null where nothing happened
 * @param {string} what for screen readers
 */
export function showSparkline(box, points, what) {
  const [svg, label] = box.children;
  const known = points.filter((point) => point !== null);
  const last = known.at(-1);
  box.hidden = last === undefined;
  if (box.hidden) return;
  const highest = Math.max(...known);
  setText(label, spellSeconds(last));
  svg.setAttribute("aria-label", `${what}: last ${spellSeconds(last)}, highest ${spellSeconds(highest)}`);
  svg.replaceChildren(...lines(points, highest));
}

function lines(points, highest) {
  const runs = [[]];
  points.forEach((point, index) => {
    if (point === null) runs.push([]);
    else runs.at(-1).push([x(index, points.length), y(point, highest)]);
  });
  return runs.filter((run) => run.length).map(line);
}

function line(run) {
  if (run.length === 1) return drawing("circle", { cx: run[0][0], cy: run[0][1], r: "1.8" });
  return drawing("polyline", { points: run.map((place) => place.join(",")).join(" ") });
}

const x = (index, count) => rounded(MARGIN + ((WIDTH - 2 * MARGIN) * index) / Math.max(count - 1, 1));
const y = (point, highest) =>
  rounded(HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (highest ? point / highest : 0));
const rounded = (number) => String(Math.round(number * 10) / 10);

export function spellSeconds(seconds) {
  return seconds < 1 ? `${(seconds * 1000).toFixed(1)} ms` : `${seconds.toFixed(2)} s`;
}
