"""Named suites: algorithms x datasets x seeds, trained and evaluated alike, on one page."""
