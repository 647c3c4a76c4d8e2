"use strict";
// Everything that comes from files (names, captions, errors) is put into the page as text, never as markup.

const PAGE = 24;
const get = (id) => document.getElementById(id);
const state = { text: "", minus: "", filters: "", like: "", results: [], shown: null, limit: PAGE, request: 0 };

function clock(seconds) {
  const whole = Math.floor(seconds + 1e-6), pad = (n) => String(n).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function clockOf(part) {
  return `${clock(part.start)}–${clock(part.end)}`;
}

// A browser shows the frame before a time that a float has rounded down.
const INSIDE = 0.005;
const fileName = (path) => path.split(/[\\/]/).pop();
const picture = (video, seconds, width) => `/api/videos/${video}/picture.jpg?seconds=${seconds.toFixed(3)}&width=${width}`;
const file = (video) => `/api/videos/${video}/file`;

function query() {
  const words = new URLSearchParams();
  for (const name of ["text", "minus", "like"]) if (state[name]) words.set(name, state[name]);
  return words;
}

function withFilters(words) {
  for (const filter of state.filters.split(";").map((part) => part.trim()).filter(Boolean)) words.append("filter", filter);
  return words;
}

async function ask(address) {
  const answer = await fetch(address, { headers: { Accept: "application/json" } });
  const content = await answer.json().catch(() => ({ error: `the server answered ${answer.status}` }));
  if (!answer.ok) throw new Error(content.error || `the server answered ${answer.status}`);
  return content;
}

function say(message, problem = false) {
  get("status").textContent = message;
  get("status").classList.toggle("problem", problem);
}

async function search() {
  const request = ++state.request;
  document.title = state.text ? `${state.text} – Video search` : "Video search";
  const words = withFilters(query());
  const searching = Boolean(state.text || state.like);
  say("Searching…");
  words.set("limit", state.limit);
  try {
    const content = await ask(`/api/${searching ? "search" : "videos"}?${words}`);
    if (request !== state.request) return;
    state.results = searching ? content.results : content.map((video) => ({ video, score: null, parts: [] }));
    const count = state.results.length;
    say(searching ? `${count} ${count === 1 ? "video" : "videos"} in ${Math.round(content.milliseconds)} ms` : `${state.about.videos} videos, student ${state.about.student}`);
    show();
  } catch (error) {
    if (request !== state.request) return;
    state.results = [];
    show();
    say(error.message, true);
  }
}

function show() {
  get("grid").replaceChildren(...state.results.map(card));
  get("next").hidden = state.results.length < state.limit || state.limit >= 192;
  get("like").hidden = !state.like;
  if (state.like) {
    const [video] = state.like.split("-");
    ask(`/api/videos/${video}`).then(({ video: entry, parts }) => {
      const part = parts.find((one) => one.id === state.like) || parts[0];
      get("like-name").textContent = `${fileName(entry.path)} ${part ? clock(part.best) : ""}`;
      get("like-picture").src = picture(video, part ? part.best : 0, 160);
    }).catch((error) => say(error.message, true));
  }
}

function card(found, place) {
  const { video, parts } = found, part = parts[0];
  const start = part ? part.start : 0, best = part ? part.best : Math.min(1, video.length / 2);
  const image = make("img", { src: picture(video.id, best, 480), alt: "", loading: "lazy" });
  const view = make("span", { className: "picture" }, image);
  if (place < 9) view.append(make("span", { className: "badge", textContent: String(place + 1) }));
  const when = part ? clockOf(part) : clock(video.length);
  view.append(make("span", { className: "time", textContent: when }));
  const facts = part ? `${found.score.toFixed(3)}${parts.length > 1 ? `, ${parts.length} moments` : ""}` : clock(video.length);
  const words = make("span", { className: "words" },
    make("span", { className: "name", textContent: fileName(video.path), title: video.path, dir: "auto" }),
    make("span", { className: "quiet", textContent: facts }));
  const node = make("button", { type: "button", className: "card" }, view, words);
  node.dataset.video = video.id;
  node.setAttribute("aria-label", `${fileName(video.path)}, ${when}${part ? `, score ${facts}` : ""}`);
  if (place < 9) node.setAttribute("aria-keyshortcuts", String(place + 1));
  const play = () => preview(view, video.id, start, part ? part.end : video.length);
  const stop = () => view.querySelector("video")?.remove();
  node.addEventListener("click", () => open(found));
  node.addEventListener("mouseenter", play);
  node.addEventListener("mouseleave", stop);
  node.addEventListener("focus", () => { if (node.matches(":focus-visible")) play(); });
  node.addEventListener("blur", stop);
  return node;
}

function preview(view, video, start, end) {
  if (view.querySelector("video")) return;
  const player = make("video", { muted: true, playsInline: true, tabIndex: -1, ariaHidden: "true", preload: "auto", src: `${file(video)}#t=${start.toFixed(2)}` });
  player.addEventListener("loadedmetadata", () => { player.currentTime = start; player.play().catch(() => {}); });
  player.addEventListener("timeupdate", () => { if (player.currentTime > end) player.currentTime = start; });
  player.addEventListener("error", () => player.remove());
  view.append(player);
}

async function open(found) {
  const { video } = found;
  state.shown = { found, part: found.parts[0] || null };
  get("film-name").textContent = fileName(video.path);
  const columns = Object.entries(video.columns || {}).map(([name, value]) => `${name}: ${value}`);
  get("film-facts").textContent = [video.path, clock(video.length), video.date, ...columns, video.error].filter(Boolean).join(" · ");
  get("film-file").href = file(video.id);
  get("film-file").download = fileName(video.path);
  get("film-problem").hidden = true;
  get("moments").replaceChildren();
  get("strip").replaceChildren();
  get("line").replaceChildren();
  const player = get("player");
  player.src = file(video.id);
  player.poster = picture(video.id, state.shown.part ? state.shown.part.best : 0, 960);
  const at = state.shown.part ? state.shown.part.best : 0;
  player.onloadedmetadata = () => { player.currentTime = at + INSIDE; };
  player.onerror = () => {
    get("film-problem").textContent = "This browser cannot play the file; download it to see it.";
    get("film-problem").hidden = false;
  };
  if (!get("film").open) get("film").showModal();
  try {
    const { parts } = await ask(`/api/videos/${video.id}?${query()}`);
    if (state.shown?.found !== found) return;
    const chosen = state.shown.part ? parts.find((part) => part.start === state.shown.part.start && part.end === state.shown.part.end) : parts[0];
    drawLine(parts, video.length, chosen);
    drawMoments(found.parts.length ? found.parts : parts.slice(0, 12));
    if (chosen) drawStrip(video.id, chosen);
  } catch (error) {
    get("film-problem").textContent = error.message;
    get("film-problem").hidden = false;
  }
}

function seek(seconds) {
  const player = get("player");
  player.currentTime = seconds + INSIDE;
  player.play().catch(() => {});
}

function drawLine(parts, length, chosen) {
  const line = get("line"), space = "http://www.w3.org/2000/svg";
  line.setAttribute("viewBox", `0 0 ${Math.max(length, 0.1)} 1`);
  const scores = parts.map((part) => part.score ?? 0);
  const high = Math.max(...scores), low = Math.min(...scores) - 0.2 * Math.max(high - Math.min(...scores), 0.01);
  // Windows overlap: each second shows the best of the parts that hold it.
  const edges = [...new Set(parts.flatMap((part) => [part.start, part.end]))].sort((a, b) => a - b);
  let first = 0; // of a film of days, only the parts from here on are looked at: they come in the order of time
  const longest = Math.max(...parts.map((part) => part.end - part.start));
  const bars = edges.slice(1).map((end, place) => {
    const start = edges[place], own = [];
    while (first < parts.length && parts[first].start < start - longest) first += 1;
    for (let next = first; next < parts.length && parts[next].start < end - 1e-6; next += 1) {
      if (parts[next].end > start + 1e-6) own.push(parts[next]);
    }
    const score = Math.max(...own.map((part) => part.score ?? 0), low);
    const bar = document.createElementNS(space, "rect"), height = Math.max(0.04, (score - low) / (high - low));
    for (const [name, value] of Object.entries({ x: start, width: end - start, y: 1 - height, height })) bar.setAttribute(name, value);
    if (chosen && own.some((part) => part.id === chosen.id)) bar.classList.add("best");
    return bar;
  });
  const needle = document.createElementNS(space, "line");
  needle.setAttribute("y1", 0);
  needle.setAttribute("y2", 1);
  line.replaceChildren(...bars, needle);
  line.setAttribute("aria-valuemin", 0);
  line.setAttribute("aria-valuemax", Math.round(length));
  const follow = () => {
    const now = get("player").currentTime;
    for (const end of ["x1", "x2"]) needle.setAttribute(end, now);
    const here = bestAt(parts, now);
    line.setAttribute("aria-valuenow", Math.round(now));
    line.setAttribute("aria-valuetext", here && here.score !== null ? `${clock(now)}, score ${here.score.toFixed(3)}` : clock(now));
  };
  follow();
  get("player").ontimeupdate = get("player").onseeked = follow;
  const goTo = (at) => {
    seek(at);
    const part = bestAt(parts, at);
    if (part) choose(part);
  };
  line.onclick = (event) => {
    const box = line.getBoundingClientRect();
    goTo(((event.clientX - box.left) / box.width) * length);
  };
  line.onkeydown = (event) => {
    const now = get("player").currentTime, starts = parts.map((part) => part.start);
    const later = starts.filter((start) => start > now + 2 * INSIDE), before = starts.filter((start) => start < now - 0.5);
    const at = { ArrowRight: later[0], ArrowUp: later[0], ArrowLeft: before.at(-1), ArrowDown: before.at(-1), Home: starts[0], End: starts.at(-1) }[event.key];
    if (at === undefined) return;
    event.preventDefault();
    goTo(at);
  };
}

function bestAt(parts, at) {
  return parts.filter((one) => one.start <= at && one.end >= at).sort((a, b) => (b.score ?? 0) - (a.score ?? 0))[0];
}

function choose(part) {
  state.shown.part = part;
  drawStrip(state.shown.found.video.id, part);
}

function drawMoments(parts) {
  get("moments").replaceChildren(...parts.map((part) => {
    const label = `${clockOf(part)}${part.score === null ? "" : `  ${part.score.toFixed(3)}`}`;
    const node = make("button", { type: "button", textContent: label });
    node.addEventListener("click", () => { seek(part.best); choose(part); });
    return node;
  }));
}

function drawStrip(video, part) {
  const most = Math.max(...part.weights, 1e-9);
  const close = part.times.some((time, place) => place && time - part.times[place - 1] < 1); // then tenths tell them apart
  const shown = (time) => clock(time) + (close ? `.${Math.floor(10 * (time + 1e-6)) % 10}` : "");
  get("strip-title").textContent = `Frames of ${clockOf(part)}, and how much the student weighs each`;
  get("strip").replaceChildren(...part.times.map((time, place) => {
    const weight = part.weights[place];
    const label = `${shown(time)}  ${(100 * weight).toFixed(0)} %`;
    const node = make("button", { type: "button", title: `${shown(time)}, weight ${weight.toFixed(3)}`, ariaLabel: `Frame at ${label}` },
      make("img", { src: picture(video, time, 160), alt: "", loading: "lazy" }),
      make("meter", { min: 0, max: most, value: weight, ariaHidden: "true" }),
      label);
    node.addEventListener("click", () => seek(time));
    return node;
  }));
}

function close() {
  get("film").close();
}

get("film").addEventListener("close", () => {
  if (get("film").open) return; // another was opened before the browser said so
  const player = get("player");
  player.pause();
  player.removeAttribute("src");
  player.removeAttribute("poster");
  player.load();
  const video = state.shown?.found.video.id;
  state.shown = null;
  const lost = [document.body, null].includes(document.activeElement) || get("film").contains(document.activeElement);
  if (lost) document.querySelector(`.card[data-video="${video}"]`)?.focus(); // a digit opened it: nothing was focused
});
get("film-close").addEventListener("click", close);
get("film").addEventListener("click", (event) => { if (event.target === get("film")) close(); });

function read() {
  const words = new URLSearchParams(location.search);
  for (const name of ["text", "minus", "filters", "like"]) state[name] = words.get(name) || "";
  for (const name of ["text", "minus", "filters"]) get(name).value = state[name];
  get("more").open = get("more").open || Boolean(state.minus || state.filters);
  state.limit = PAGE;
}

function go(changes) {
  Object.assign(state, { limit: PAGE }, changes);
  const words = new URLSearchParams();
  for (const name of ["text", "minus", "filters", "like"]) if (state[name]) words.set(name, state[name]);
  const address = words.size ? `?${words}` : location.pathname;
  if (address !== (location.search || location.pathname)) history.pushState(null, "", address);
  for (const name of ["text", "minus", "filters"]) get(name).value = state[name];
  search();
}

get("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = Object.fromEntries(["text", "minus", "filters"].map((name) => [name, get(name).value.trim()]));
  get("text").blur();
  go({ ...typed, like: typed.text && typed.text !== state.text ? "" : state.like });
});
get("next").addEventListener("click", () => { state.limit = Math.min(192, state.limit + PAGE); search(); });
get("like-stop").addEventListener("click", () => go({ like: "" }));
get("film-like").addEventListener("click", () => {
  const { found, part } = state.shown;
  close();
  go({ text: "", like: part ? part.id : found.video.id });
});
window.addEventListener("popstate", () => { read(); search(); });
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName);
  if (event.key === "/" && !typing) {
    event.preventDefault();
    if (get("film").open) close();
    get("text").focus();
    get("text").select();
  } else if (/^[1-9]$/.test(event.key) && !typing) {
    const found = state.results[Number(event.key) - 1];
    if (found) open(found);
  }
});

ask("/api/index").then((about) => {
  state.about = about;
  get("columns").textContent = `Filters compare ${about.columns.join(", ")} with =, !=, <, <=, >, >= or ~ (contains); between them ;`;
  read();
  return search();
}).catch((error) => say(error.message, true));
