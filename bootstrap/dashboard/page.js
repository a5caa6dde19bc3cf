"use strict";
// Everything that comes from the server is put on the page as text, never as
// markup: machines write some of it.

const stages = [["dhcp", "DHCP"], ["nbp", "iPXE"], ["script", "script"], ["kernel", "kernel"], ["initrd", "initrd"], ["ignition", "Ignition"], ["enrolled", "enrolled"]];
const states = ["ready", "member", "enrolled", "installed", "installing", "armed", "approved", "discovered", "quarantined", "failed", "resetting", "retired"];
const $ = (id) => document.getElementById(id);
const machines = new Map(); // by name: what the server said
const cards = new Map();    // by name: what stands on the page
let order = [];
let ahead = 0; // how far the server's clock is ahead of ours, in ms

function element(tag, cls, text) {
  const e = document.createElement(tag);
  if (cls) e.className = cls;
  if (text !== undefined) e.textContent = text;
  return e;
}

// text changes nothing that is the same already, or screen readers would say it again.
function say(e, text) {
  if (e.textContent !== text) e.textContent = text;
  e.hidden = text === "";
}

function ago(time) {
  const s = Math.max(0, Math.round((Date.now() + ahead - Date.parse(time)) / 1000));
  if (s < 60) return s + " s";
  if (s < 3600) return Math.floor(s / 60) + " min " + (s % 60) + " s";
  if (s < 86400) return Math.floor(s / 3600) + " h " + Math.floor(s % 3600 / 60) + " min";
  return Math.floor(s / 86400) + " d";
}

function kind(m) {
  if (m.alarm || m.state === "failed" || m.state === "quarantined") return "alarm";
  if (m.state === "ready") return "good";
  if (m.state === "armed" || m.state === "installing" || m.state === "installed" || m.state === "enrolled" || m.state === "member") return "busy";
  return "";
}

function card(m) {
  let c = cards.get(m.name);
  if (!c) {
    c = { root: element("li"), title: element("h2"), state: element("span", "state"), where: element("p", "quiet"), track: element("ol"),
      time: element("p", "quiet"), bar: element("progress"), reason: element("p"), refusal: element("p", "bad"), private: element("p", "quiet"),
      details: element("details"), log: element("pre"), said: element("details"), console: element("pre"), steps: [] };
    const head = element("div", "head");
    head.append(c.title, c.state);
    c.track.setAttribute("aria-label", "Boot");
    for (const [, label] of stages) {
      const li = element("li", "", label);
      c.steps.push(li);
      c.track.append(li);
    }
    c.bar.max = 100;
    c.bar.setAttribute("aria-label", "Installation");
    c.details.append(element("summary", "quiet", "what the server saw of it"), c.log);
    c.said.append(element("summary", "quiet", "what it said itself"), c.console);
    c.root.append(head, c.where, c.track, c.bar, c.reason, c.refusal, c.time, c.private, c.details, c.said);
    cards.set(m.name, c);
  }
  return c;
}

function draw(m) {
  const c = card(m);
  c.root.className = kind(m);
  say(c.title, m.name);
  say(c.state, m.unlisted ? "unlisted" : m.state);
  say(c.where, [m.role, m.zone && "zone " + m.zone].filter(Boolean).join(", "));
  const at = stages.findIndex(([name]) => name === m.stage);
  c.track.hidden = at < 0;
  c.steps.forEach((li, i) => {
    li.className = i < at ? "past" : "";
    if (i === at) li.setAttribute("aria-current", "step"); else li.removeAttribute("aria-current");
  });
  c.bar.hidden = m.state !== "installing" || !m.percent;
  if (m.percent) c.bar.value = m.percent;
  say(c.reason, [m.reason, m.activity].filter(Boolean).join(" · "));
  const p = m.private || {};
  say(c.private, [p.address, (p.macs || []).join(" ")].filter(Boolean).join(" · "));
  tail(c.details, c.log, p.log);
  tail(c.said, c.console, p.console);
  clock(m);
}

// tail shows the end of a list of events.
function tail(box, pre, events) {
  box.hidden = !events;
  const text = (events || []).map((e) => new Date(e.at).toLocaleString() + "  " + e.stage + "  " + e.detail).join("\n");
  if (pre.textContent === text) return;
  pre.textContent = text;
  pre.scrollTop = pre.scrollHeight;
}

// clock writes what changes by itself.
function clock(m) {
  const c = cards.get(m.name);
  const parts = [];
  if (m.since) parts.push(m.state + " for " + ago(m.since));
  if (m.stage && !m.over) parts.push("at this stage for " + ago(m.at));
  if (m.stage && m.over) parts.push("last boot " + ago(m.at) + " ago");
  if (m.seen) parts.push("heard " + ago(m.seen) + " ago");
  say(c.time, parts.join(" · "));
  say(c.refusal, m.refusal ? "refused " + ago(m.refusal.at) + " ago: " + m.refusal.reason + " (" + m.refusal.code + ")" : "");
}

function filter() {
  const word = $("find").value.trim().toLowerCase();
  const late = $("late").checked;
  for (const name of order) {
    const m = machines.get(name);
    const text = [m.name, m.role, m.zone, m.state, m.stage, m.reason, m.refusal && m.refusal.code].join(" ").toLowerCase();
    cards.get(name).root.hidden = (late && m.state === "ready" && !m.alarm) || !text.includes(word);
  }
}

function count() {
  const n = new Map();
  for (const m of machines.values()) {
    const s = m.unlisted ? "not in cluster.yaml" : m.state;
    n.set(s, (n.get(s) || 0) + 1);
  }
  const rows = [...states, "not in cluster.yaml"].filter((s) => n.has(s)).map((s) => element("li", "", n.get(s) + " " + s));
  $("counts").replaceChildren(...rows);
}

function show(news) {
  ahead = news.now - Date.now();
  say($("cluster"), news.view.cluster);
  say($("summary"), news.view.summary);
  say($("notice"), news.view.notice || "");
  document.title = (news.view.ready ? "✓ " : "") + news.view.cluster + " · imagectl";
  for (const m of news.machines) {
    machines.set(m.name, m);
    draw(m);
  }
  if (news.order) {
    order = news.order;
    const known = new Set(order);
    for (const name of [...machines.keys()]) {
      if (!known.has(name)) {
        machines.delete(name);
        cards.delete(name);
      }
    }
    $("machines").replaceChildren(...order.map((name) => cards.get(name).root));
  }
  count();
  filter();
  say($("about"), news.operator ? "You see everything: your browser showed an operator's certificate. This page changes nothing." :
    "Addresses, what the server saw of each machine, and machines that are not in cluster.yaml are for operators' certificates. This page changes nothing.");
}

function connect() {
  const source = new EventSource("/events");
  source.addEventListener("open", () => say($("link"), ""));
  source.addEventListener("view", (e) => show(JSON.parse(e.data)));
  source.addEventListener("error", () => {
    say($("link"), "The server does not answer; what you see may be old. Trying again…");
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000 + Math.random() * 5000);
  });
}

$("find").addEventListener("input", filter);
$("late").addEventListener("change", filter);
setInterval(() => { for (const m of machines.values()) clock(m); }, 1000);
connect();
