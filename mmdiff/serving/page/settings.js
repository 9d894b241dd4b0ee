// The settings of a panel: each is the run's own until it is touched.

import { el } from "./dom.js";

const COUNTS = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512];
const steps = (low, high, by) => Array.from({ length: Math.round((high - low) / by) + 1 }, (_, i) => Number((low + i * by).toFixed(3)));

// name of the request's field, what it is called, its values, and the run's name for it
const SLIDERS = [
  ["max_denoising_steps", "Steps", COUNTS, "steps", "Denoising steps over the whole canvas"],
  ["temperature", "Temperature", steps(0, 2, 0.05), "temperature", "0: always the likeliest token"],
  ["threshold", "Threshold", steps(0.05, 1, 0.05), "threshold", "Commit every position that is at least so sure; steps then plays no part"],
  ["block_length", "Block", COUNTS, "block_length", "Positions that are filled before the next ones are begun"],
];

export class Settings {
  // sampler: the run's own. lengths: whether the number of new tokens can be chosen.
  constructor(sampler, lengths, panel) {
    this.values = {};
    const rows = SLIDERS.map((one) => this.slider(sampler, panel, ...one));
    const numbers = [lengths && ["max_tokens", "New tokens", "the task's"], ["seed", "Seed", "random"]].filter(Boolean);
    this.root = el("details", { className: "settings" }, el("summary", {}, "Settings"),
      el("div", { className: "fields" }, ...rows, ...numbers.map((one) => this.number(panel, ...one))));
    this.root.open = matchMedia("(min-width: 720px)").matches;
  }

  slider(sampler, panel, field, name, values, own, about) {
    const base = sampler[own] ?? null;
    const all = base === null || values.includes(base) ? values : [...values, base].sort((a, b) => a - b);
    const start = base === null ? all.length - 1 : all.indexOf(base);
    const id = `${field}-${panel}`;
    const out = el("output", { for: id });
    const input = el("input", { type: "range", id, min: "0", max: String(all.length - 1), value: String(start), title: about });
    const reset = el("button", { type: "button", className: "plain", "aria-label": `${name}: as the run has it`, title: "As the run has it" }, "↺");
    const say = () => {
      const value = this.values[field];
      const shown = value === undefined ? (base ?? (field === "max_denoising_steps" ? "one a token" : "none")) : value;
      out.textContent = String(shown);
      reset.hidden = value === undefined;
      input.setAttribute("aria-valuetext", String(shown));
      input.classList.toggle("own", value === undefined);
    };
    input.addEventListener("input", () => { this.values[field] = all[Number(input.value)]; say(); });
    reset.addEventListener("click", () => { delete this.values[field]; input.value = String(start); say(); input.focus(); });
    say();
    return el("div", { className: "setting" }, el("label", { for: id, title: about }, name), input, out, reset);
  }

  number(panel, field, name, placeholder) {
    const id = `${field}-${panel}`;
    const input = el("input", { type: "number", id, min: field === "seed" ? "0" : "1", step: "1", placeholder, inputmode: "numeric" });
    input.addEventListener("input", () => {
      const value = input.valueAsNumber;
      if (Number.isSafeInteger(value)) this.values[field] = value;
      else delete this.values[field];
    });
    return el("div", { className: "setting" }, el("label", { for: id }, name), input);
  }

  // The fields of a request. again: the number of a rewriting, so that it draws anew under a fixed seed.
  fields(again = 0) {
    const found = { ...this.values };
    if (again) delete found.max_tokens;
    if (found.seed !== undefined) found.seed += again;
    return found;
  }

  said() {
    const names = { max_denoising_steps: "steps", block_length: "block", max_tokens: "new tokens" };
    return Object.entries(this.values).map(([name, value]) => `${names[name] || name} ${value}`).join(", ") || "the run's settings";
  }
}
