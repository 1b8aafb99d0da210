// Mark the section in view in the navigation bar.
const links = new Map($$("nav a").map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    for (const link of links.values()) link.removeAttribute("aria-current");
    links.get(target.id)?.setAttribute("aria-current", "true");
  }
}, { rootMargin: "-30% 0px -65%" });
for (const id of links.keys()) watcher.observe(document.getElementById(id));
