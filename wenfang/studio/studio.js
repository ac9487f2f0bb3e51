// Keeps the newest words in sight while a reply grows, unless the reader has scrolled up to read.
window.addEventListener("load", () => {
  let following = true;
  const end = () => document.documentElement.scrollHeight - window.innerHeight - window.scrollY;
  window.addEventListener("scroll", () => { following = end() < 80; }, { passive: true });
  new MutationObserver((changes) => {
    if (!changes.some((change) => change.target.closest?.(".log") || change.target.parentElement?.closest(".log"))) return;
    if (following) window.scrollTo({ top: document.documentElement.scrollHeight });
  }).observe(document.body, { childList: true, characterData: true, subtree: true });
});
