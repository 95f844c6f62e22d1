// The page: asks the API, shows what it answers. Texts of others are only ever set as text.

import { drawLegend, drawMap } from "./draw.js";

const byId = (id) => document.getElementById(id);
const state = { token: null, about: null, map: null, image: null, shown: { place: null, hits: [], steps: [] } };
const SIGNS = { safe: "\u25cf", unsafe: "\u25b2", undecided: "\u25a1" };

async function ask(path, body) {
  const headers = state.token ? { authorization: `Bearer ${state.token}` } : {};
  const options = { headers };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["content-type"] = "application/json";
  }
  const response = await fetch(path, options);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ error: `the server answered ${response.status}` }));
  const error = new Error([problem.error, ...(problem.items ?? []).map((one) => one.error)].join(": "));
  error.status = response.status;
  throw error;
}

const askJson = async (path, body) => (await ask(path, body)).json();

function make(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function tell(status, problem = "") {
  byId("status").textContent = status;
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
}

const kindOf = (score) => score.decision ?? "undecided";

function verdict(score) {
  const kind = kindOf(score);
  return make("span", { className: `verdict ${kind}` }, make("span", { ariaHidden: "true" }, `${SIGNS[kind]} `), kind);
}

function facts(score) {
  const told = [`at ${score.distance.toFixed(3)} from the root`];
  if (score.probability !== null) told.push(`unsafe with ${(100 * score.probability).toFixed(1)} %`);
  return told.join(", ");
}

// An image of the index. A hidden one comes blurred from the server, and clear only when asked for.
function picture(hit) {
  const image = make("img");
  const parts = [image];
  let revealed = false;
  const load = async () => {
    const blurred = hit.hidden && !revealed;
    image.alt = `Image ${hit.id}, ${kindOf(hit.score)}${blurred ? ", blurred" : ""}`;
    try {
      const answer = await ask(`${hit.picture}?reveal=${revealed}`);
      const address = URL.createObjectURL(await answer.blob());
      image.onload = () => URL.revokeObjectURL(address);
      image.src = address;
    } catch (error) {
      image.replaceWith(make("p", {}, `Image ${hit.id}: ${error.message}`));
    }
  };
  if (hit.hidden) {
    const button = make("button", { type: "button" }, `Show image ${hit.id}`);
    button.addEventListener("click", async () => {
      revealed = !revealed;
      button.textContent = `${revealed ? "Blur" : "Show"} image ${hit.id}`;
      await load();
    });
    parts.push(button);
  }
  load();
  return parts;
}

function content(hit) {
  return hit.picture ? picture(hit) : [make("p", {}, hit.text)];
}

function card(hit, start) {
  const from = make("p", { className: "facts" }, `${hit.distance.toFixed(3)} from ${start}; ${facts(hit.score)}`);
  return make("li", { className: `is-${kindOf(hit.score)}` }, ...content(hit), make("p", {}, verdict(hit.score)), from);
}

function stepCard(step) {
  const head = `${Math.round(100 * step.share)} % of the way, at ${step.distance.toFixed(3)}`;
  const found = [step.text, step.image].filter((hit) => hit !== null);
  const parts = found.flatMap((hit) => [...content(hit), make("p", {}, verdict(hit.score))]);
  return make("li", {}, make("p", { className: "facts" }, head), ...parts);
}

function showQuery(score) {
  byId("verdict").replaceChildren(verdict(score), ` ${score.modality}, ${facts(score)}`);
  byId("answer").hidden = false;
  byId("found").hidden = true;
  byId("way").hidden = true;
}

function toldOf(found) {
  if (found.blocked) return `The query is ${kindOf(found.query)}, and was blocked.`;
  const moved = found.moved > 0 ? `, and was redirected by ${found.moved.toFixed(3)}` : "";
  return `The query is ${kindOf(found.query)}${moved}. ${found.hits.length} results.`;
}

function showFound(found) {
  showQuery(found.query);
  const start = found.moved > 0 ? "where the query was moved" : "the query";
  byId("hits").replaceChildren(...found.hits.map((hit) => card(hit, start)));
  byId("found").hidden = found.blocked;
  tell(toldOf(found));
}

function showWay(way, to) {
  const end = to === "origin" ? "towards the root, to the bound of the safe class" : "to the nearest item that is called safe";
  byId("way-told").textContent = `Along the geodesic ${end}, with what is nearest on the way.`;
  byId("steps").replaceChildren(...way.steps.map(stepCard));
  byId("way").hidden = false;
}

function showMap() {
  if (!state.map) return;
  const { map, about, shown } = state;
  const scale = drawMap(byId("disk"), map, about.thresholds, shown, byId("whole").checked);
  const counted = map.items.length < map.total ? `${map.items.length} of ${map.total} items` : `${map.total} items`;
  const zoom = scale > 1.05 ? ` Enlarged ${scale.toPrecision(2)} times.` : "";
  byId("map-told").textContent =
    `${counted}, by their distance to the root (exactly) and their direction (of the two that tell most).${zoom}`;
  const unsafe = map.items.filter((item) => item.decision === "unsafe").length;
  byId("disk-told").textContent = `${counted} in the disk, ${unsafe} of them called unsafe. The table below has them all.`;
}

async function loadMap() {
  state.map = await askJson("/map");
  drawLegend(byId("legend"), state.map, state.about.thresholds);
  byId("rows").replaceChildren(
    ...state.map.items.map((item) =>
      make(
        "tr",
        {},
        make("th", { scope: "row" }, String(item.id)),
        make("td", {}, item.modality),
        make("td", {}, verdict(item)),
        make("td", {}, item.distance.toFixed(3)),
        make("td", {}, item.text ?? ""),
      ),
    ),
  );
  byId("map").hidden = false;
  showMap();
}

function readAsBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the image cannot be read"));
    reader.readAsDataURL(file);
  });
}

async function query() {
  if (state.image) {
    const most = Math.floor(state.about.max_body * 0.74); // base64 is longer by a third
    if (state.image.size > most) throw new Error(`the image has more than ${(most / 2 ** 20).toFixed(1)} MiB`);
    return { image: await readAsBase64(state.image) };
  }
  const text = byId("text").value.trim();
  if (!text) throw new Error("type some words, or choose an image");
  return { text };
}

async function search() {
  const asked = await query();
  const policy = document.querySelector("input[name=policy]:checked").value;
  const redirection = { to: byId("to").value };
  const modality = byId("modality").value || null;
  const found = await askJson("/search", {
    ...asked,
    k: Number(byId("k").value),
    modality,
    policy,
    redirection,
  });
  showFound(found);
  state.shown = { place: found.place, hits: found.hits, steps: [] };
  if (found.moved > 0) {
    const way = await askJson("/redirect", { ...asked, modality, redirection });
    showWay(way, redirection.to);
    state.shown.steps = way.steps;
  }
  showMap();
}

async function score() {
  const { scores } = await askJson("/score", { items: [await query()] });
  showQuery(scores[0]);
  tell(`The query is ${kindOf(scores[0])}, ${facts(scores[0])}.`);
}

// One at a time: the answer to an older question would replace that to a newer one.
async function run(task) {
  if (byId("ask").ariaBusy === "true") return;
  byId("ask").ariaBusy = "true";
  tell("Asking\u2026");
  try {
    await task();
  } catch (error) {
    tell("", error.message);
    if (error.status === 401) askForToken();
  } finally {
    byId("ask").ariaBusy = "false";
  }
}

function setUp() {
  const { policies } = state.about;
  for (const radio of document.querySelectorAll("input[name=policy]")) {
    radio.disabled = !policies.includes(radio.value);
    radio.checked = radio.value === ["redirect", "block", "as-asked"].find((one) => policies.includes(one));
  }
  for (const id of ["policies", "options"]) byId(id).hidden = !policies.length;
  byId("search").hidden = !policies.length;
}

function askForToken() {
  byId("token-form").hidden = false;
  byId("token").focus();
}

async function start() {
  try {
    state.about = await askJson("/about");
    byId("token-form").hidden = true;
    tell("");
    setUp();
    if (state.about.policies.length) await loadMap();
  } catch (error) {
    tell("", error.message);
    if (error.status === 401) askForToken();
  }
}

function choose(file) {
  state.image = file;
  byId("chosen").hidden = !file;
  if (!file) return;
  const address = URL.createObjectURL(file);
  byId("preview").onload = () => URL.revokeObjectURL(address);
  byId("preview").src = address;
}

byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.token = byId("token").value.trim();
  start();
});
byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run(state.about?.policies.length ? search : score);
});
byId("score").addEventListener("click", () => run(score));
byId("image").addEventListener("change", (event) => choose(event.target.files[0] ?? null));
byId("clear").addEventListener("click", () => {
  byId("image").value = "";
  choose(null);
  byId("image").focus();
});
byId("whole").addEventListener("change", showMap);
start();
