// Sorts a table by the column whose heading is clicked: as numbers if every cell is one.
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "descending";
  for (const th of head.parentElement.children) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "descending" : "ascending");
  const key = row => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
  const compare = (a, b) => a === b ? 0 : a === "" ? 1 : b === "" ? -1 :
    (isNaN(a) || isNaN(b) ? b.localeCompare(a) : b - a) * (up ? 1 : -1);
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
};

// The threshold slider: one series of numbers for each small model, as JSON in an attribute.
for (const box of document.querySelectorAll(".slider")) {
  const all = JSON.parse(box.dataset.series), range = box.querySelector("input");
  const output = box.querySelector("output"), select = box.querySelector("select");
  const minus = text => text.replaceAll("-", "\u2212");
  const digits = n => minus(Math.abs(n) < 1000 ? n.toFixed(3) : n.toPrecision(4));
  const draw = (parent, name, attributes, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    node.textContent = text ?? "";
    return parent.appendChild(node);
  };
  let one, circle, place;
  const show = () => {
    const i = +range.value, { threshold, rate, quality, low, high, cost, large } = one;
    const parts = [
      threshold[i] === null ? "defers nothing" : "threshold " + minus(String(threshold[i])),
      `deferral rate ${(100 * rate[i]).toFixed(1)} %`,
      `quality ${digits(quality[i])} [${digits(low[i])}, ${digits(high[i])}]`,
    ];
    if (!cost) parts.push("cost not known");
    else parts.push(`cost ${minus(cost[i].toPrecision(3))} ${box.dataset.unit}` + (!large ? "" :
      `, ${cost[i] < large ? "\u2212" : "+"}${(100 * Math.abs(cost[i] / large - 1)).toFixed(0)} % against the large model alone`));
    output.textContent = parts.join("\n");
    range.setAttribute("aria-valuetext", parts.join(", "));
    const [x, y] = place(i);
    circle.setAttribute("cx", x);
    circle.setAttribute("cy", y);
  };
  const open = () => {
    one = all[select ? select.value : 0];
    const { rate, quality } = one, last = rate.length - 1;
    const bottom = Math.min(...quality), span = Math.max(...quality) - bottom || 1;
    place = i => [50 + 300 * rate[i], 150 - 130 * (quality[i] - bottom) / span];
    const svg = box.querySelector("figure");
    svg.replaceChildren();
    const chart = draw(svg, "svg", { viewBox: "0 0 370 185", "aria-hidden": "true" });
    draw(chart, "polyline", { class: "random", points: [place(0), place(last)].join(" ") });
    draw(chart, "polyline", { points: rate.map((_, i) => place(i)).join(" ") });
    circle = draw(chart, "circle", { r: 6 });
    for (const [x, y, anchor, text] of [[44, 155, "end", digits(bottom)], [44, 25, "end", digits(bottom + span)],
      [50, 177, "start", "0 %"], [200, 177, "middle", "deferral rate"], [350, 177, "end", "100 %"],
      [50, 10, "start", "quality"]]) draw(chart, "text", { x, y, "text-anchor": anchor }, text);
    range.max = last;
    range.value = one.start;
    show();
  };
  range.oninput = show;
  if (select) select.onchange = open;
  open();
  box.hidden = false;
}

// On paper nothing is folded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => one.open = true));
