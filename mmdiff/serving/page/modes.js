// What a person gives, by what the task reads: each mode builds its fields, and makes a row of them.

import { el } from "./dom.js";
import { Picker } from "./media.js";

const area = (label, rows, placeholder, props = {}) =>
  el("textarea", { "aria-label": label, rows: String(rows), placeholder, ...props });

// Whether the first names of a task's fields, or what it has besides, say that a mode is meant; the first that does is.
export function modeOf(health) {
  const has = (name) => health.fields.includes(name);
  if (health.world) return "robot";
  if (has("messages")) return "chat";
  if (has("sequence")) return "protein";
  if (has("question")) return "question";
  if (has("audio")) return "speech";
  if (has("instruction")) return "instruction";
  return has("text") ? "text" : "row";
}

const TEXTS = {
  chat: ["Message", "Write a message. Enter sends, Shift+Enter begins a line."],
  question: ["Question", "Ask about the picture or the sound"],
  speech: ["Hypothesis", "A first transcript that is to be mended, if there is one"],
  text: ["Text", "Once upon a time   (what follows is written; [[8]] is a gap of 8 tokens)"],
  protein: ["Sequence", "MKT____LLG   (_ is a masked residue)"],
  instruction: ["Instruction", "What the robot is to do"],
  row: ["Row", '{"field": "value"}   the row as JSON'],
};

// The gaps of a text: strings and numbers in turn; a text without any is one string.
export function gaps(text) {
  const parts = text.split(/\[\[\s*(\d+)\s*\]\]/).map((part, i) => (i % 2 ? Number(part) : part));
  return parts.filter((part) => part !== "");
}

export class Inputs {
  constructor(health, send) {
    this.health = health;
    this.mode = modeOf(health);
    this.conversation = this.mode === "chat" || (this.mode === "question" && health.fields.includes("conversations"));
    const [label, placeholder] = TEXTS[this.mode] || [];
    const kinds = this.mode === "chat" || this.mode === "robot" ? [] : ["image", "audio"];
    const seen = (kind) => health.fields.includes(kind) && (health.media.includes(kind) || !kinds.length);
    this.pickers = kinds.filter(seen).map((kind) => new Picker(kind, health.max_body));
    this.text = label ? area(label, { chat: 1, question: 2 }[this.mode] || 3, placeholder) : null;
    if (this.mode === "protein") this.text.classList.add("mono");
    this.extras = {};
    const more = [];
    if (this.mode === "question" && health.media.includes("protein")) more.push(this.extra("protein", "A protein, its residues"));
    if (health.fields.includes("options")) more.push(this.extra("options", "The options, one on a line"));
    if (this.mode === "protein") more.push(this.extra("target", "A target that the sequence is to bind, if there is one"));
    if (this.mode === "chat" && health.fields.includes("system")) more.push(this.extra("system", "What the system says, if anything"));
    this.more = area("Other fields of the row", 2, '{"field": value}   other fields of the row, as JSON');
    this.earlier = this.conversation ? el("input", { type: "checkbox", checked: this.mode === "chat" }) : null;
    this.send = el("button", { type: "submit", className: "main" }, this.conversation ? "Send" : "Run");
    this.stop = el("button", { type: "button", className: "stop", hidden: true }, "Stop");
    this.clear = el("button", { type: "button", className: "plain" }, this.conversation ? "New chat" : "Clear");
    this.root = this.build(more);
    this.text?.addEventListener("keydown", (event) => {
      const enter = event.key === "Enter" && !event.isComposing;
      if (enter && (this.conversation ? !event.shiftKey : event.ctrlKey || event.metaKey)) { event.preventDefault(); send(); }
    });
    this.text?.addEventListener("input", () => this.grow());
  }

  extra(name, placeholder) {
    this.extras[name] = area(name, name === "options" ? 3 : 1, placeholder);
    return this.extras[name];
  }

  build(more) {
    const gap = this.mode === "text" || this.mode === "protein"
      ? el("button", { type: "button", className: "plain", onclick: () => this.insert() }, this.mode === "text" ? "Insert a gap" : "Mask the selection")
      : null;
    const earlier = this.earlier ? el("label", { className: "check" }, this.earlier, " send earlier turns") : null;
    const others = this.mode === "row" || this.mode === "robot" ? null
      : el("details", { className: "others" }, el("summary", {}, "More"), ...more, this.more);
    return [
      this.pickers.length ? el("div", { className: "pickers" }, ...this.pickers.map((one) => one.root)) : null,
      this.text ? el("div", { className: "line" }, this.text, el("div", { className: "go" }, this.send, this.stop)) : null,
      el("div", { className: "under" }, gap, earlier, this.clear, others),
    ].filter(Boolean);
  }

  grow() {
    if (this.mode !== "chat") return;
    this.text.style.height = "auto";
    this.text.style.height = `${Math.min(this.text.scrollHeight + 2, 180)}px`;
  }

  insert() {
    const { selectionStart: from, selectionEnd: to, value } = this.text;
    this.text.setRangeText(this.mode === "text" ? "[[8]]" : "_".repeat(Math.max(1, to - from)), from, to, "end");
    if (from === 0 && to === 0 && value) this.text.setSelectionRange(0, 0);
    this.text.focus();
  }

  // Returns what is asked: { row(turns): the row, media, said: the text that a turn shows, around }. Throws an Error.
  asked() {
    const text = this.text.value;
    const media = this.pickers.map((one) => one.value).filter(Boolean);
    const others = this.json(this.mode === "row" ? "{}" : this.more.value, "more");
    for (const [name, field] of Object.entries(this.extras)) {
      const value = field.value.trim();
      if (value) others[name] = name === "options" ? value.split("\n").map((one) => one.trim()).filter(Boolean) : value;
    }
    const seen = Object.fromEntries(media.map((one) => [one.kind, one.data]));
    const plain = { chat: null, question: { question: text.trim() }, speech: text.trim() ? { hypothesis: text.trim() } : {},
      protein: { sequence: text.replace(/\s+/g, "").replace(/[a-z]/g, (letter) => letter.toUpperCase()) }, instruction: { instruction: text.trim() } };
    if (this.mode === "row") return { row: () => this.json(text, "row"), media: [], said: text, around: null };
    if (this.mode === "text") {
      const parts = gaps(text);
      const holes = parts.some((part) => typeof part === "number");
      return { row: () => ({ text: holes ? parts : text, ...others }), media, said: holes ? "" : text, around: holes ? parts : null, holes };
    }
    if (this.mode === "chat") {
      if (!text.trim()) throw new Error("message: is empty");
      return { row: (turns) => this.messages(turns, text.trim(), others), media, said: text.trim(), around: null };
    }
    if (this.mode !== "speech" && !text.trim()) throw new Error(`${TEXTS[this.mode][0].toLowerCase()}: is empty`);
    if (this.mode === "speech" && !media.length && !text.trim()) throw new Error("sound: choose, drop or record one");
    const alone = { ...plain[this.mode], ...seen, ...others };
    const row = (turns) => (this.earlier?.checked && turns.some((turn) => turn.whole) ? this.turns(turns, text.trim(), media, others) : alone);
    return { row, media, said: this.mode === "protein" ? "" : text.trim(), around: null };
  }

  messages(turns, text, { system, ...others }) {
    const before = this.earlier.checked ? turns.filter((turn) => turn.whole).flatMap((turn) => [["user", turn.said], ["assistant", String(turn.prediction)]]) : [];
    const all = [...(system ? [["system", system]] : []), ...before, ["user", text]];
    return { messages: all.map(([role, content]) => ({ role, content })), ...others };
  }

  // A dialogue with media: each stands before the question that it came with.
  turns(turns, text, media, others) {
    const found = {};
    const ask = (said, of) => of.map((one) => { (found[one.kind] ||= []).push(one.data); return `<${one.kind}>\n`; }).join("") + said;
    const conversations = turns.filter((turn) => turn.whole).flatMap((turn) => [
      { from: "human", value: ask(turn.said, turn.media) }, { from: "gpt", value: String(turn.prediction) },
    ]);
    conversations.push({ from: "human", value: ask(text, media) });
    return { conversations, ...found, ...others };
  }

  json(text, name) {
    if (!text.trim()) return {};
    try {
      const found = JSON.parse(text);
      if (found && typeof found === "object" && !Array.isArray(found)) return found;
    } catch { /* the line below says it */ }
    throw new Error(`${name}: is not a JSON object, expected {"field": value}`);
  }

  sent() {
    if (!this.conversation) return;
    this.text.value = "";
    this.grow();
    this.pickers.forEach((one) => { if (this.earlier.checked) one.set(null); });
  }
}
