"use strict";
const page = document.body, all = (selector) => [...document.querySelectorAll(selector)];

// Live pages: ask for this address again while the tab is visible, and replace the parts that changed.
const note = document.getElementById("note"), button = document.getElementById("live");
let paused = false, asking = false;
async function refresh() {
  if (document.hidden || paused || asking) return;
  asking = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (fresh.body.dataset.page !== page.dataset.page) return location.reload();
    for (const part of all("[data-live]")) {
      const other = fresh.getElementById(part.id);
      if (!other || other.innerHTML === part.innerHTML || part.querySelector("details[open]")) continue;
      const focused = part.contains(document.activeElement) && document.activeElement.getAttribute("href");
      part.replaceChildren(...other.childNodes);
      if (focused) part.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
    }
    page.dataset.refresh = fresh.body.dataset.refresh;
    note.hidden = true;
  } catch {
    note.textContent = "The server does not answer. Trying again.";
    note.hidden = false;
  } finally {
    asking = false;
  }
}
async function keepFresh() {
  await refresh();
  if (page.dataset.refresh !== "0") setTimeout(keepFresh, page.dataset.refresh * 1000);
}
if (page.dataset.refresh !== "0") {
  setTimeout(keepFresh, page.dataset.refresh * 1000);
  document.addEventListener("visibilitychange", refresh);
}
if (button) {
  button.hidden = false;
  button.addEventListener("click", () => button.setAttribute("aria-pressed", String((paused = !paused))));
}

// One player at a time; its waveform shows how far it is, and a click on it goes there.
for (const audio of all("audio")) {
  const wave = audio.parentElement.querySelector(".wave");
  audio.addEventListener("error", () => audio.replaceWith("The file cannot be played."));
  audio.addEventListener("play", () => all("audio").forEach((other) => other === audio || other.pause()));
  if (!wave) continue;
  audio.addEventListener("timeupdate", () => wave.style.setProperty("--played", audio.currentTime / audio.duration || 0));
  wave.addEventListener("click", async (event) => {
    await audio.play();
    audio.currentTime = (audio.duration * event.offsetX) / wave.clientWidth;
  });
}

for (const copy of all("[data-copy]")) {
  copy.hidden = !navigator.clipboard;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(copy.dataset.copy);
    copy.classList.add("done");
  });
}
