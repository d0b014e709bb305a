// From a disk, browsers let no page read another: results then come without the words around what was found.
DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = location.protocol !== "file:";
