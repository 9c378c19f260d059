"use strict";
{
  const found = document.getElementById("trials");
  const { trials, budget } = found ? JSON.parse(found.textContent) : { trials: [], budget: null };
  const byNumber = new Map(trials.map((trial) => [String(trial.number), trial]));
  const card = document.getElementById("card");
  const slider = document.getElementById("slider");
  const all = (number) => document.querySelectorAll(`[data-trial="${number}"]`);
  const tip = element("div", "");
  tip.id = "tip";
  tip.hidden = true;
  let chosen = null;

  function element(name, text) {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  }

  /* A command, broken between its words only. */
  function words(text) {
    const code = document.createElement("code");
    text.split(" ").forEach((word, i) => code.append(i ? " " : "", element("span", word)));
    return code;
  }

  /* Write what is known of a trial into a box. */
  function fill(box, trial) {
    const list = document.createElement("dl");
    for (const [name, value] of trial.facts) {
      const pair = document.createElement("div");
      pair.append(element("dt", name), element("dd", value));
      list.append(pair);
    }
    const command = document.createElement("pre");
    command.append(words(trial.command));
    box.replaceChildren(element("h3", `Trial ${trial.number}`), list, command);
  }

  /* Make a trial the chosen one: in every figure, and in the card below the frontier. */
  function choose(number, query) {
    for (const mark of document.querySelectorAll(".chosen[data-trial]")) {
      mark.classList.remove("chosen");
      if (mark.tabIndex === 0) mark.tabIndex = -1;
    }
    chosen = String(number);
    for (const mark of all(chosen)) {
      mark.classList.add("chosen");
      if (mark.matches(".mark")) mark.tabIndex = 0;
    }
    fill(card, byNumber.get(chosen));
    if (query) {
      const command = document.createElement("pre");
      command.append(words(query));
      card.append(element("p", "Best under this budget:"), command);
    }
  }

  /* Show what is known of a trial beside its mark. */
  function hover(mark) {
    leave();
    const trial = byNumber.get(mark.dataset.trial);
    if (!trial) return;
    for (const other of all(mark.dataset.trial)) other.classList.add("on");
    const figure = mark.closest("figure");
    fill(tip, trial);
    figure.append(tip);
    tip.hidden = false;
    const frame = figure.getBoundingClientRect();
    const box = (mark.querySelector(".target") ?? mark).getBoundingClientRect();
    const right = box.right - frame.left + 10;
    const fits = right + tip.offsetWidth <= frame.width;
    const left = fits ? right : box.left - frame.left - tip.offsetWidth - 10;
    const most = Math.max(0, frame.width - tip.offsetWidth);
    tip.style.left = `${Math.min(most, Math.max(0, left))}px`;
    const beside = fits || left >= 0;
    tip.style.top = `${beside ? box.top - frame.top : box.bottom - frame.top + 10}px`;
  }

  function leave() {
    tip.hidden = true;
    for (const mark of document.querySelectorAll(".on[data-trial]")) mark.classList.remove("on");
  }

  /* Read the slider; choose the best trial that costs no more. */
  function limit() {
    const share = Number(slider.value);
    const { low, high, log, ranked, unit, factor, command } = budget;
    const at = log ? low * (high / low) ** share : low + (high - low) * share;
    const shown = Math.min(high, Math.max(low, at));
    const [number] = ranked.find(([, cost]) => cost <= shown * (1 + 1e-6));
    const rounded = roundedUp(shown);
    document.getElementById("budget").textContent = `${rounded} ${unit}`;
    slider.setAttribute("aria-valuetext", `${rounded} ${unit}: trial ${number}`);
    for (const line of document.querySelectorAll("line.budget")) {
      const start = Number(line.dataset.start);
      const x = start + (line.dataset.end - start) * share;
      line.setAttribute("x1", x);
      line.setAttribute("x2", x);
    }
    choose(number, command.replace("BUDGET", Number((rounded / factor).toPrecision(6))));
  }

  function roundedUp(value) {
    const step = 10 ** (Math.floor(Math.log10(value)) - 3);
    return Number((Math.ceil(value / step - 1e-9) * step).toPrecision(4));
  }

  const markOf = (event) => event.target.closest?.("[data-trial]");
  document.addEventListener("pointerover", (event) => {
    const mark = markOf(event);
    if (mark && event.pointerType === "mouse") hover(mark);
  });
  document.addEventListener("pointerout", (event) => markOf(event) && leave());
  document.addEventListener("focusin", (event) => markOf(event) && hover(markOf(event)));
  document.addEventListener("focusout", (event) => markOf(event) && leave());
  document.addEventListener("click", (event) => {
    const mark = markOf(event);
    if (mark && card) choose(mark.dataset.trial, "");
  });
  document.addEventListener("keydown", (event) => {
    const mark = event.target.closest?.(".mark");
    if (event.key === "Escape") leave();
    if (!mark) return;
    const place = (one) => Number(one.querySelector(".target").getAttribute("cx"));
    const marks = [...mark.ownerSVGElement.querySelectorAll(".mark")];
    marks.sort((a, b) => place(a) - place(b));
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 };
    const next = marks[marks.indexOf(mark) + (steps[event.key] ?? NaN)];
    if (event.key in steps) event.preventDefault();
    if (next) next.focus();
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(mark.dataset.trial, "");
    }
  });
  if (slider && budget) {
    slider.addEventListener("input", limit);
    limit();
  } else if (trials.length && card) {
    choose(trials[0].number, "");
  }
}
