// The map: items, query and redirection in the Poincaré disk, as SVG.

const SPACE = "http://www.w3.org/2000/svg";

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const kindOf = (item) => item.decision ?? "undecided";

// A shape for each modality and decision, so that no colour is needed to tell them apart.
const SHAPES = {
  text: { safe: circle, unsafe: triangle, undecided: ring },
  image: { safe: square, unsafe: diamond, undecided: ring },
};

function circle(size) {
  return `M${-size} 0a${size} ${size} 0 1 0 ${2 * size} 0a${size} ${size} 0 1 0 ${-2 * size} 0Z`;
}
function ring(size) {
  const half = size / 2;
  return `${circle(size)}M${-half} 0a${half} ${half} 0 1 1 ${2 * half} 0a${half} ${half} 0 1 1 ${-2 * half} 0Z`;
}
function square(size) {
  return `M${-size} ${-size}H${size}V${size}H${-size}Z`;
}
function triangle(size) {
  return `M0 ${-1.3 * size}L${1.2 * size} ${size}H${-1.2 * size}Z`;
}
function diamond(size) {
  return `M0 ${-1.5 * size}L${1.5 * size} 0L0 ${1.5 * size}L${-1.5 * size} 0Z`;
}
function star(size) {
  const points = [...Array(10).keys()].map((n) => {
    const [radius, angle] = [n % 2 ? size * 0.8 : size * 2, (Math.PI * n) / 5];
    return `${radius * Math.sin(angle)} ${-radius * Math.cos(angle)}`;
  });
  return `M${points.join("L")}Z`;
}

function mark(modality, decision, size) {
  return element("path", { class: `mark ${decision}`, "fill-rule": "evenodd", d: SHAPES[modality][decision](size) });
}

function at(place, scale, child) {
  return element("g", { transform: `translate(${place.x * scale} ${-place.y * scale})` }, child);
}

const radiusOf = (distance, curvature) => Math.tanh((Math.sqrt(curvature) * distance) / 2);

// Distances for rings: round numbers, three to five of them.
function ringsUpTo(limit) {
  const rough = limit / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
  return [...Array(Math.floor(limit / step)).keys()].map((n) => Number(((n + 1) * step).toPrecision(3)));
}

function drawRings(svg, map, thresholds, scale, limit) {
  for (const distance of ringsUpTo(limit)) {
    const radius = radiusOf(distance, map.curvature) * scale;
    svg.append(element("circle", { class: "ring", r: radius }));
    svg.append(element("text", { x: 0.01, y: -radius - 0.01 }, String(distance)));
  }
  for (const [index, [modality, distance]] of Object.entries(thresholds).entries()) {
    const radius = radiusOf(distance, map.curvature) * scale;
    if (radius > 1.05) continue;
    svg.append(element("circle", { class: "threshold", r: radius }));
    const [x, y] = [-radius * 0.7, (index ? 1 : -1) * radius * 0.7];
    svg.append(element("text", { x, y, "text-anchor": "end" }, `${modality} threshold`));
  }
}

function line(place, scale, kind) {
  return element("line", { class: kind, x2: place.x * scale, y2: -place.y * scale });
}

function drawQuery(svg, shown, scale) {
  for (const hit of shown.hits) {
    svg.append(line(hit.place, scale, "geodesic of-hit"));
    svg.append(at(hit.place, scale, element("circle", { class: "found", r: 0.035 })));
  }
  if (shown.steps.length > 1) {
    const points = shown.steps.map(({ place }) => `${place.x * scale},${-place.y * scale}`).join(" ");
    svg.append(element("polyline", { class: "way", points }));
    svg.append(at(shown.steps.at(-1).place, scale, element("path", { class: "query", d: diamond(0.03) })));
  }
  if (shown.place) {
    svg.append(line(shown.place, scale, "geodesic of-hit"));
    svg.append(at(shown.place, scale, element("path", { class: "query", d: star(0.03) })));
  }
}

// `shown` is of the last query: its place, its hits and the steps of its redirection.
export function drawMap(svg, map, thresholds, shown, whole) {
  for (const child of [...svg.children].slice(2)) child.remove();
  const places = [...map.items, ...shown.hits, ...shown.steps].map((one) => one.place);
  if (shown.place) places.push(shown.place);
  const farthest = Math.max(1e-9, ...places.map(({ x, y }) => Math.hypot(x, y)));
  const scale = whole ? 1 : 0.95 / farthest;
  const limit = (2 * Math.atanh(Math.min(1 - 1e-9, 1 / scale))) / Math.sqrt(map.curvature);
  svg.append(element("circle", { class: "rim", r: whole ? 1 : Math.min(scale, 1.6) }));
  drawRings(svg, map, thresholds, scale, Math.min(limit, (2 * Math.atanh(farthest)) / Math.sqrt(map.curvature) * 1.05));
  for (const item of map.items) svg.append(line(item.place, scale, "geodesic"));
  for (const item of map.items) {
    const drawn = mark(item.modality, kindOf(item), 0.018);
    const name = item.text ?? `image ${item.id}`;
    drawn.append(element("title", {}, `${name}: ${kindOf(item)}, at ${item.distance.toFixed(3)}`));
    svg.append(at(item.place, scale, drawn));
  }
  drawQuery(svg, shown, scale);
  svg.append(element("circle", { class: "root", r: 0.018 }));
  return scale;
}

export function drawLegend(list, map, thresholds) {
  const present = new Set(map.items.map((item) => `${item.modality} ${kindOf(item)}`));
  const entries = [[element("circle", { class: "root", r: 0.8 }), "the root; lines to it are geodesics"]];
  for (const modality of ["text", "image"])
    for (const decision of ["safe", "unsafe", "undecided"])
      if (present.has(`${modality} ${decision}`)) entries.push([mark(modality, decision, 0.9), `${decision} ${modality}`]);
  if (Object.keys(thresholds).length)
    entries.push([element("circle", { class: "threshold", r: 1 }), "thresholds: what lies beyond is called unsafe"]);
  entries.push([element("path", { class: "query", d: star(0.7) }), "the query; rings and lines mark what it found"]);
  list.replaceChildren(
    ...entries.map(([drawn, told]) => {
      const item = document.createElement("li");
      item.append(element("svg", { viewBox: "-1.6 -1.6 3.2 3.2", "aria-hidden": "true" }, drawn), told);
      return item;
    }),
  );
}
