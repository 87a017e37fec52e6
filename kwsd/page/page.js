"use strict";
// What the page shows comes from /status once, and from then on from the events at /events.

const MOST_EVENTS = 60;
const QUIETEST_DBFS = -90;
const PEAK_MS = 2500;      // a peak stays so long before it falls
const HEARD_MS = 2500;     // a word that was heard stays green
const STATUS_MS = 5000;    // levels and ailments of streams nobody scores, uptime
const SILENT_MS = 4000;    // without scores a stream's bars say nothing
const ANSWER_MS = 10000;   // a request has so long
const WRITTEN_MS = 500;    // after its event a clip is on the disk
const UNKNOWN = "_unknown_";

const byId = (id) => document.getElementById(id);
const streams = new Map();    // name → {element, words, peaks, heard, seen}
const thresholds = new Map(); // keyword → {element, input, output, back}
let status = null;
let asking = null, next = null;  // the request for /status that is on its way, and that after it

// --- talking to the daemon ---

async function get(path) {
  try {
    const answer = await fetch(path, {signal: AbortSignal.timeout(ANSWER_MS)});
    if (answer.status === 401) location.reload();
    return answer.ok ? await answer.text() : null;
  } catch {  // what comes of that, the events say
    return null;
  }
}

function fetchStatus() {  // one at a time: they may overtake each other; and what was asked before may be too old
  const again = () => { next = null; return fetchStatus(); };
  if (asking) return next ??= asking.then(again, again);
  asking = askForStatus().finally(() => { asking = null; });
  return asking;
}

async function askForStatus() {
  const text = await get("status");
  if (text === null) return;
  status = JSON.parse(text);
  showStatus();
}

async function post(path, said) {  // what is wrong with it, or null
  try {
    const answer = await fetch(path, {
      method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(said),
    });
    const told = answer.headers.get("Content-Type").startsWith("application/json") ? (await answer.json()).error : await answer.text();
    return answer.ok ? null : told;
  } catch {
    return "the daemon does not answer";
  }
}

async function command(said, answered = () => {}) {
  noteRefusal(await post("command", said));
  answered();
  await fetchStatus();
}

function connect() {
  const source = new EventSource("events?scores=1");
  source.onopen = () => { setState("good", "listening"); fetchStatus(); showSuggestion(); showClips(); };
  source.onerror = () => {
    setState("bad", "connection lost; trying again …");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
  source.addEventListener("scores", (event) => showScores(JSON.parse(event.data)));
  for (const type of TOLD) source.addEventListener(type, (event) => take(JSON.parse(event.data)));
}

const TROUBLE = new Set(["audio_lost", "audio_fault", "overrun", "overload", "hook_failed", "broker_lost", "refused", "dropped"]);
const TOLD = ["detection", "rejected", "ready", "overrun", "overload", "audio_lost", "audio_restored", "audio_fault",
  "audio_healed", "stream_joined", "stream_left", "mute", "threshold", "hook_failed", "broker_lost", "broker_restored",
  "reload", "shutdown", "dropped", "hello"];

function take(event) {
  if (event.type === "shutdown") setState("bad", `stopped: ${event.reason}`);
  if (event.type === "detection") markHeard(event);
  if (event.type === "detection" || event.type === "rejected") showClipsSoon();
  if (event.type === "rejected" || event.type === "hello") return;
  note(event);
  if (event.type !== "detection") fetchStatus();
  if (event.type === "threshold" || event.type === "reload") showSuggestion();
  if (event.type === "reload") showClips();
}

// --- showing ---

function setState(kind, text) {
  const state = byId("state");
  state.className = kind;
  state.textContent = text;
  document.body.classList.toggle("gone", kind === "bad");
}

function showStatus() {
  const wrong = status.problems.join("; ");
  setState(wrong ? "wait" : "good", wrong || "listening");
  const hours = status.uptime_s / 3600;
  const up = hours >= 1 ? `${hours.toFixed(1)} h` : `${Math.round(status.uptime_s / 60)} min`;
  byId("about").textContent =
    `kwsd ${status.kwsd}, ${status.model}; up ${up}, ${status.detections} words heard, a window every ${status.hop_ms} ms`;
  const names = new Set(status.streams.map((stream) => stream.stream));
  for (const [name, shown] of streams) if (!names.has(name)) { shown.element.remove(); streams.delete(name); }
  for (const stream of status.streams) showStream(stream);
  for (const shown of streams.values()) forgetWords(shown);
  for (const [word, keyword] of Object.entries(status.keywords)) showThreshold(word, keyword);
  for (const [word, shown] of thresholds) if (!(word in status.keywords)) { shown.element.remove(); thresholds.delete(word); }
}

function shownStream(name) {
  if (streams.has(name)) return streams.get(name);
  const element = byId("stream-template").content.firstElementChild.cloneNode(true);
  element.dataset.stream = name;
  element.querySelector(".name").textContent = name;
  const mute = element.querySelector(".mute");
  mute.setAttribute("aria-label", `Mute ${name}`);
  mute.addEventListener("click", () =>
    command({command: mute.getAttribute("aria-pressed") === "true" ? "unmute" : "mute", streams: [name]}));
  byId("streams").append(element);
  const shown = {element, words: new Map(), peaks: new Map(), heard: new Map(), seen: 0};
  streams.set(name, shown);
  return shown;
}

function showStream(stream) {
  const {element, seen} = shownStream(stream.stream);
  element.classList.toggle("ill", Boolean(stream.ailment));
  element.classList.toggle("muted", stream.muted);
  element.querySelector(".badge").textContent = stream.muted ? "muted" : stream.ailment || "hears";
  const mute = element.querySelector(".mute");
  mute.setAttribute("aria-pressed", String(stream.muted));
  mute.textContent = stream.muted ? "Muted" : "Mute";
  if (stream.muted) for (const parts of shownStream(stream.stream).words.values()) showNothing(parts);
  if (performance.now() - seen > SILENT_MS) showLevel(element, stream.level_dbfs, stream.lag_ms);
}

function forgetWords(shown) {  // those nobody listens for any more
  for (const [word, parts] of shown.words) {
    if (word in status.keywords) continue;
    parts.element.remove();
    for (const known of [shown.words, shown.peaks, shown.heard]) known.delete(word);
  }
}

function showLevel(element, dbfs, lagMs) {
  const level = element.querySelector(".level");
  const share = dbfs === null ? 0 : Math.min(1, Math.max(0, 1 - dbfs / QUIETEST_DBFS));
  level.firstElementChild.style.width = `${share * 100}%`;
  level.setAttribute("aria-valuenow", dbfs === null ? QUIETEST_DBFS : dbfs);
  element.querySelector(".dbfs").textContent = dbfs === null ? "no sound" : `${dbfs.toFixed(1)} dBFS`;
  element.querySelector(".lag").textContent = lagMs < 10000 ? `lag ${lagMs} ms` : "nothing comes";
}

function shownWord(shown, word) {
  if (shown.words.has(word)) return shown.words.get(word);
  const element = byId("word-template").content.firstElementChild.cloneNode(true);
  element.dataset.word = word;
  element.querySelector(".label").textContent = word;
  shown.element.querySelector(".words").append(element);
  const parts = {element, value: element.querySelector(".value")};
  for (const part of ["peak", "score", "posterior", "mark"]) parts[part] = element.querySelector(`.${part}`);
  shown.words.set(word, parts);
  return parts;
}

function showScores(event) {
  const shown = shownStream(event.stream), now = performance.now();
  shown.seen = now;
  showLevel(shown.element, event.level_dbfs, event.lag_ms);
  const rest = Object.entries(event.posteriors).filter(([label]) => !(label in event.scores));
  shown.element.querySelector(".other").textContent =
    rest.map(([label, share]) => `${label.replaceAll("_", "")} ${share.toFixed(2)}`).join("  ");
  for (const [word, score] of Object.entries(event.scores)) {
    const parts = shownWord(shown, word);
    const peak = shown.peaks.get(word);
    if (!peak || score >= peak.score || now - peak.at > PEAK_MS) shown.peaks.set(word, {score, at: now});
    parts.score.style.width = `${score * 100}%`;
    parts.peak.style.width = `${shown.peaks.get(word).score * 100}%`;
    parts.posterior.style.width = `${event.posteriors[word] * 100}%`;
    parts.mark.style.left = `${event.thresholds[word] * 100}%`;
    parts.value.textContent = score.toFixed(2);
    parts.element.classList.toggle("heard", now - (shown.heard.get(word) ?? -Infinity) < HEARD_MS);
  }
}

function showNothing(parts) {
  for (const part of [parts.score, parts.peak, parts.posterior]) part.style.width = 0;
  parts.value.textContent = "";
  parts.element.classList.remove("heard");
}

function markHeard(event) {
  shownStream(event.stream).heard.set(event.keyword, performance.now());
}

function showThreshold(word, keyword) {
  let shown = thresholds.get(word);
  if (!shown) {
    const element = byId("threshold-template").content.firstElementChild.cloneNode(true);
    element.dataset.word = word;
    element.querySelector(".label").textContent = word;
    const [input, output, back] = ["input", "output", ".back"].map((part) => element.querySelector(part));
    input.setAttribute("aria-label", `Threshold of ${word}`);
    back.setAttribute("aria-label", `${word} as configured`);
    input.addEventListener("input", () => { shown.held = true; output.textContent = input.value; });
    input.addEventListener("change", () => setThreshold(shown, word, Number(input.value)));
    back.addEventListener("click", () => setThreshold(shown, word, null));
    byId("thresholds").append(element);
    shown = {element, input, output, back, held: false, pending: 0, sent: Promise.resolve()};
    thresholds.set(word, shown);
  }
  shown.input.min = keyword.lowest;
  if (!shown.held && !shown.pending) {  // else what it says is newer than what the daemon said
    shown.input.value = keyword.threshold;
    shown.output.textContent = keyword.threshold;
  }
  const changed = keyword.threshold !== keyword.configured;
  shown.element.classList.toggle("changed", changed);
  shown.back.hidden = !changed;
}

async function setThreshold(shown, word, value) {
  shown.held = false;
  shown.pending += 1;
  const send = () => command({command: "threshold", keyword: word, value}, () => { shown.pending -= 1; });
  shown.sent = shown.sent.then(send, send);  // one after the other: requests may overtake each other
  await shown.sent;
}

async function showSuggestion() {
  const text = await get("suggestion");
  if (text !== null) byId("yaml").textContent = text;
}

function noteRefusal(reason) {
  if (reason !== null) note({type: "refused", time: new Date().toISOString(), reason});
}

function note(event) {
  const list = byId("events");
  list.querySelector(".none")?.remove();
  const item = document.createElement("li");
  item.className = TROUBLE.has(event.type) ? "trouble" : event.type;
  const time = document.createElement("time");
  time.dateTime = event.time;
  time.textContent = new Date(event.time).toLocaleTimeString([], {hourCycle: "h23"});
  const text = document.createElement("span");
  const head = document.createElement("b");
  head.textContent = event.type === "detection" ? event.keyword : event.type.replaceAll("_", " ");
  text.append(head, ` ${describe(event)}`);
  item.append(time, text);
  list.prepend(item);
  while (list.children.length > MOST_EVENTS) list.lastElementChild.remove();
}

function describe(event) {
  if (event.type === "detection") {
    const also = (event.also_heard ?? []).map((other) => `, also ${other.stream}`).join("");
    return `${event.stream}, ${event.score.toFixed(2)} ≥ ${event.threshold.toFixed(2)}${also}`;
  }
  if (event.type === "mute") return `${event.stream} ${event.muted ? "is muted" : "is heard again"}`;
  if (event.type === "threshold") return `${event.keyword} counts from ${event.threshold} on`;
  const hidden = new Set(["v", "type", "id", "seq", "time", "model", "keywords"]);
  return Object.entries(event).filter(([name]) => !hidden.has(name))
    .map(([name, value]) => `${name} ${Array.isArray(value) ? value.join(", ") : value}`).join(", ");
}

// --- clips ---

const clips = new Map();  // place → element
const player = new Audio();
let playing = null;  // its button
let coming = null;   // the timer of one that is being written

function showClipsSoon() {
  if (!byId("clips-section").hidden) coming ??= setTimeout(() => { coming = null; showClips(); }, WRITTEN_MS);
}

async function showClips() {
  const text = await get("clips");
  if (text === null) return;
  const {clips: latest, words} = JSON.parse(text);
  byId("clips-section").hidden = latest === null;
  const places = new Set((latest ?? []).map(({clip}) => clip));
  for (const [place, element] of clips) if (!places.has(place)) { element.remove(); clips.delete(place); }
  for (const clip of (latest ?? []).toReversed()) {  // those that are new come to the top
    if (!clips.has(clip.clip)) byId("clips").prepend(shownClip(clip, words));
  }
}

function shownClip(clip, words) {
  const element = byId("clip-template").content.firstElementChild.cloneNode(true);
  element.dataset.clip = clip.clip;
  const [play, time, head, where, was] = [".play", "time", "b", ".where", "select"].map((part) => element.querySelector(part));
  const at = new Date(clip.time);
  time.dateTime = clip.time;
  time.textContent = at.toLocaleString([], {month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23"});
  head.textContent = clip.keyword;
  where.textContent = clip.told ? clip.stream : `${clip.stream}, not told`;
  element.classList.toggle("told", clip.told);
  play.setAttribute("aria-label", `Listen to ${clip.keyword} in ${clip.stream}`);
  play.addEventListener("click", () => playClip(play, clip));
  was.setAttribute("aria-label", `What it was that was taken for ${clip.keyword}`);
  for (const word of [clip.keyword, ...words.filter((word) => word !== clip.keyword)]) {
    if (words.includes(word)) was.append(new Option(word === UNKNOWN ? "none of the words" : word, word));
  }
  was.addEventListener("change", () => sortClip(was, clip));
  clips.set(clip.clip, element);
  return element;
}

function playClip(button, clip) {
  playing?.classList.remove("playing");
  playing = button;
  player.src = `clips/${clip.clip.split("/").map(encodeURIComponent).join("/")}`;
  player.play().then(() => button.classList.add("playing"), () => {});  // where it is gone, the list says so
  player.onended = () => button.classList.remove("playing");
}

async function sortClip(was, clip) {
  if (was.value === "") return;
  was.disabled = true;
  noteRefusal(await post("clips", {clip: clip.clip, word: was.value}));
  await showClips();
  was.disabled = false;
}

byId("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(byId("yaml").textContent);
    byId("copy").textContent = "Copied";
  } catch {  // no clipboard without TLS, beyond the own machine: then by hand
    getSelection().selectAllChildren(byId("yaml"));
    byId("copy").textContent = "Marked; copy it now";
  }
  setTimeout(() => { byId("copy").textContent = "Copy"; }, 2000);
});

setInterval(() => { if (!document.hidden) fetchStatus(); }, STATUS_MS);
connect();
