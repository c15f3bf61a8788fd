// Tenants: what they have stored, what they did, and how near they are to their quotas.

import { element, find, keepChildren, setText } from "./element.js";

const MEGABYTE = 1e6;
const SHOWN = { "": "this key", __none__: "without a key", __other__: "all others" };

/** What a key without an admin's role sees of quotas: the headers of its own answers. */
const RATES = ["requests", "tokens"];

/**
 * @param {object[]} cards as GET /v1/adapters has them
 * @param {object[] | null} samples of /metrics; null when the key may not see them
 * @param {object[]} own quotas that answers told
 */
export function showTenants(cards, samples, own) {
  const tenants = new Map();
  const of = (name) => tenants.get(name) ?? tenants.set(name, emptyTenant(name)).get(name);
  for (const card of cards) addCard(of(card.tenant), card);
  for (const sample of samples ?? []) if (sample.labels.tenant) addSample(of(sample.labels.tenant), sample);
  if (!samples) for (const quota of own) of(cards[0]?.tenant ?? "").quotas.set(quota.name, quota);
  if (!tenants.get("__other__")?.requests) tenants.delete("__other__");
  const rows = new Map([...tenants].sort(([a], [b]) => (a < b ? -1 : 1)));
  keepChildren(find("tenant-rows"), rows, makeRow, (row, tenant) => updateRow(row, tenant, samples !== null));
}

/** Return the quotas that an answer's headers tell. */
export function ratesOf(headers) {
  return RATES.filter((unit) => headers.has(`x-ratelimit-limit-${unit}`)).map((unit) => {
    const limit = Number(headers.get(`x-ratelimit-limit-${unit}`));
    const used = limit - Number(headers.get(`x-ratelimit-remaining-${unit}`));
    return { name: `${unit}_per_minute`, used, limit };
  });
}

function emptyTenant(name) {
  return { name, digests: new Map(), names: new Set(), requests: 0, refused: 0, tokens: 0, quotas: new Map() };
}

function addCard(tenant, card) {
  tenant.names.add(card.id);
  tenant.digests.set(card.digest, card.stored_bytes);
}

function addSample(tenant, { name, labels, value }) {
  if (name === "shadow_requests_total") tenant.requests += value;
  else if (name === "shadow_requests_rejected_total") tenant.refused += value;
  else if (name === "shadow_tokens_total") tenant.tokens += value;
  else if (name === "shadow_tenant_quota_used") quotaOf(tenant, labels.quota).used = value;
  else if (name === "shadow_tenant_quota_limit") quotaOf(tenant, labels.quota).limit = value;
}

function quotaOf(tenant, name) {
  if (!tenant.quotas.has(name)) tenant.quotas.set(name, { name, used: 0, limit: 0 });
  return tenant.quotas.get(name);
}

function makeRow() {
  const row = element("tr", {}, element("th", { scope: "row" }));
  for (const name of ["adapters", "stored", "requests", "refused", "tokens"]) {
    row.append(element("td", { class: `${name} number` }));
  }
  row.append(element("td", { class: "quotas" }));
  return row;
}

function updateRow(row, tenant, hasMetrics) {
  setText(row.querySelector("th"), SHOWN[tenant.name] ?? tenant.name);
  const stored = [...tenant.digests.values()].reduce((sum, bytes) => sum + bytes, 0);
  setText(row.querySelector(".adapters"), String(tenant.names.size));
  setText(row.querySelector(".stored"), `${(stored / MEGABYTE).toFixed(1)} MB`);
  for (const name of ["requests", "refused", "tokens"]) {
    setText(row.querySelector(`.${name}`), hasMetrics ? String(tenant[name]) : "");
  }
  keepChildren(row.querySelector(".quotas"), tenant.quotas, makeQuota, updateQuota);
}

function makeQuota() {
  return element("div", { class: "quota" }, element("meter", { min: "0" }), element("span"));
}

function updateQuota(box, { name, used, limit }) {
  const [meter, label] = box.children;
  const words = name.replaceAll("_", " ");
  meter.max = limit;
  meter.high = limit * 0.8;
  meter.value = used;
  meter.setAttribute("aria-label", words);
  setText(label, `${Math.ceil(used)} of ${limit} ${words}`);
}
