// Pictures and sounds: chosen, dropped, pasted or recorded, and read into base64 of a file.

import { el, fail } from "./dom.js";

const AS_IT_IS = {
  image: ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"],
  audio: ["audio/wav", "audio/x-wav", "audio/wave", "audio/flac", "audio/x-flac", "audio/mpeg", "audio/ogg"],
};
const SIDE = 2048; // pixels of a picture that is too large to be sent as it is
const RATE = 16000; // samples a second of what is recorded

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

// A picture as a file that the server reads, no larger than `most` bytes in base64.
async function picture(blob, most) {
  if (AS_IT_IS.image.includes(blob.type) && blob.size * 1.4 < most) return blob;
  const bitmap = await createImageBitmap(blob);
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = el("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
}

// A sound as a file that the server reads; whatever else the browser can decode becomes WAV, mono.
async function sound(blob) {
  if (AS_IT_IS.audio.includes(blob.type.split(";")[0]) && !blob.recorded) return blob;
  const context = new AudioContext();
  try {
    const decoded = await context.decodeAudioData(await blob.arrayBuffer());
    const offline = new OfflineAudioContext(1, Math.max(1, Math.ceil(decoded.duration * RATE)), RATE);
    const source = new AudioBufferSourceNode(offline, { buffer: decoded });
    source.connect(offline.destination);
    source.start();
    return wav((await offline.startRendering()).getChannelData(0), RATE);
  } finally {
    context.close();
  }
}

// A WAV file of 16 bits of samples from -1 to 1.
export function wav(samples, rate) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => [...text].forEach((letter, i) => bytes.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF"); bytes.setUint32(4, 36 + 2 * samples.length, true); word(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true); bytes.setUint16(20, 1, true); bytes.setUint16(22, 1, true);
  bytes.setUint32(24, rate, true); bytes.setUint32(28, 2 * rate, true);
  bytes.setUint16(32, 2, true); bytes.setUint16(34, 16, true);
  word(36, "data"); bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((v, i) => bytes.setInt16(44 + 2 * i, Math.round(Math.min(Math.max(v, -1), 1) * 32767), true));
  return new Blob([bytes], { type: "audio/wav" });
}

// A field for one picture or sound. `value` is { data: base64, url, kind } or null.
export class Picker {
  constructor(kind, most) {
    Object.assign(this, { kind, most, value: null });
    const accept = `${kind}/*`;
    const name = kind === "image" ? "picture" : "sound";
    this.file = el("input", { type: "file", accept, className: "unseen", "aria-label": `Choose a ${name}`, onchange: () => this.take(this.file.files[0]) });
    this.shown = el("div", { className: "shown" });
    const choose = el("button", { type: "button", className: "choose", onclick: () => this.file.click() }, `Choose or drop a ${name}`);
    this.mic = kind === "audio" ? el("button", { type: "button", className: "record", onclick: () => this.record() }, "● Record") : null;
    this.clear = el("button", { type: "button", className: "plain", hidden: true, "aria-label": `Remove the ${name}`, onclick: () => this.set(null) }, "✕");
    this.root = el("div", { className: `picker ${kind}` }, this.file, this.shown, choose, this.mic, this.clear);
    this.root.addEventListener("dragover", (event) => { event.preventDefault(); this.root.classList.add("over"); });
    this.root.addEventListener("dragleave", () => this.root.classList.remove("over"));
    this.root.addEventListener("drop", (event) => {
      event.preventDefault();
      event.stopPropagation();
      this.root.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    });
  }

  accepts(file) {
    return Boolean(file) && file.type.startsWith(`${this.kind}/`);
  }

  async take(file) {
    if (!file) return;
    fail("");
    try {
      const ready = this.kind === "image" ? await picture(file, this.most) : await sound(file);
      if (!ready) throw new Error("empty");
      this.set({ kind: this.kind, data: await base64(ready), url: URL.createObjectURL(ready) });
    } catch {
      fail(`${file.name || "the recording"}: this browser cannot read it as ${this.kind === "image" ? "a picture" : "a sound"}`);
    }
    this.file.value = "";
  }

  set(value) {
    this.value = value;
    this.shown.replaceChildren(...(value ? [media(value)] : []));
    this.clear.hidden = !value;
  }

  async record() {
    if (this.recorder) return void this.recorder.stop();
    if (!navigator.mediaDevices || !window.MediaRecorder) {
      return void fail("recording: this browser allows it at https:// and localhost only; choose a file instead");
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch (error) {
      return void fail(`recording: ${error.name === "NotAllowedError" ? "the microphone is not allowed" : "no microphone is found"}`);
    }
    const pieces = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = (event) => pieces.push(event.data);
    this.recorder.onstop = () => {
      stream.getTracks().forEach((track) => track.stop());
      const blob = new Blob(pieces, { type: this.recorder.mimeType });
      blob.recorded = true;
      this.recorder = null;
      this.mic.textContent = "● Record";
      this.mic.classList.remove("on");
      this.take(blob);
    };
    this.recorder.start();
    this.mic.textContent = "■ Stop recording";
    this.mic.classList.add("on");
  }
}

// How a picture or a sound is shown, here and among what was asked.
export function media({ kind, url, data }) {
  const src = url || `data:image/png;base64,${data}`;
  return kind === "image" ? el("img", { src, alt: "The picture" }) : el("audio", { src, controls: true, "aria-label": "The sound" });
}
