"use strict";
{
  // Draw the charts that are shown; the style sheet colours them. One that is hidden has no width yet.
  const draw = (place) => {
    const source = place.querySelector("script");
    if (source === null || place.closest("[hidden]")) return;
    window.vegaEmbed(place, JSON.parse(source.textContent), {
      renderer: "svg", actions: false, defaultStyle: false, tooltip: { theme: "page", disableDefaultStyle: true },
    }).catch((error) => { place.textContent = `This chart cannot be drawn: ${error.message}. Its values are below.`; });
  };

  // Show the front over the chosen pair of rewards.
  const pair = document.getElementById("pair");
  if (pair) {
    const fronts = [...document.getElementById("fronts").children];
    const choose = () => fronts.forEach((front, place) => { front.hidden = place !== pair.selectedIndex; });
    pair.addEventListener("change", () => { choose(); draw(fronts[pair.selectedIndex].querySelector(".chart")); });
    choose();
  }
  document.querySelectorAll(".chart").forEach(draw);

  // Move the divider between the pictures before and after.
  const gallery = document.getElementById("gallery");
  if (gallery) {
    const cards = [...gallery.children];
    const split = (input) => {
      input.parentElement.style.setProperty("--at", `${input.value}%`);
      input.setAttribute("aria-valuetext", `${input.value} % before, ${100 - input.value} % after`);
    };
    for (const card of cards) {
      const input = card.querySelector("input");
      input.addEventListener("input", () => split(input));
      split(input);
      for (const image of card.querySelectorAll("img")) {
        const mark = () => image.classList.toggle("small", image.naturalWidth <= 128);
        if (image.complete) mark(); else image.addEventListener("load", mark);
      }
    }
    document.getElementById("side").addEventListener("change", (event) => {
      for (const card of cards) {
        const input = card.querySelector("input");
        input.value = event.target.value;
        split(input);
      }
    });

    // Sort and filter the cards; those without a score of the chosen reward come last.
    const order = document.getElementById("order"), which = document.getElementById("which");
    const arrange = () => {
      const { value, dataset } = order.selectedOptions[0];
      const key = (card) => {
        if (value === "prompt") return Number(card.dataset.place);
        const change = dataset.reward === undefined
          ? Number(card.dataset[value]) : JSON.parse(card.dataset.changes)[dataset.reward];
        return change === undefined ? Infinity : value === "gain" ? -change : change;
      };
      const known = new Map(cards.map((card) => [card, key(card)]));
      const less = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      gallery.append(...[...cards].sort((a, b) => less(known.get(a), known.get(b))));
      for (const card of cards) card.hidden = Boolean(which && which.value && card.dataset.run !== which.value);
      const shown = cards.filter((card) => !card.hidden).length;
      document.getElementById("sorted").textContent =
        `${shown} pairs of pictures, sorted by ${order.selectedOptions[0].textContent}. ` +
        "Gains of different rewards are compared in standard deviations of the first evaluation.";
    };
    order.addEventListener("change", arrange);
    if (which) which.addEventListener("change", arrange);
    arrange();
  }
}
