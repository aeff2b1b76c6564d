"""What the browser tests rely on: that no error in a page goes unnoticed, wherever it is thrown, and whose it is."""

from __future__ import annotations

from pathlib import Path

import pytest
from driven import drive, our_errors

pytestmark = pytest.mark.long

DRIVER = Path(__file__).with_name("page_errors.mjs")
OURS = "//# sourceURL=http://server/extensions/longreel/js/ours.js"
THEIRS = "//# sourceURL=http://server/assets/theirs.js"
CALLS_BACK = f"<script>window.later = (act) => Promise.resolve().then(act);\n{THEIRS}</script>"
WRONG = {
    "thrown": "throw new Error('gone wrong');",
    "thrown later": "setTimeout(() => { throw new Error('gone wrong'); });",
    "rejected": "Promise.reject(new Error('gone wrong'));",
    "said": "console.error('gone wrong');",
    "said by whom we called": "console.assert(false, 'gone wrong');",
    "thrown by whom we called": "later(() => { throw new Error('gone wrong'); });",
}


@pytest.mark.parametrize(("whose", "noticed"), [(OURS, 1), (THEIRS, 0)], ids=["ours", "theirs"])
def test_every_error_is_noticed_with_the_file_it_came_from(whose: str, noticed: int, tmp_path: Path) -> None:
    pages = []
    for name, script in WRONG.items():
        pages.append(tmp_path / f"{name}.html")
        end = "<script>setTimeout(() => { window.done = true; }, 300);</script>"
        pages[-1].write_text(f"{CALLS_BACK}<script>{script}\n{whose}</script>{end}", encoding="utf-8")
    seen = drive(DRIVER, *map(str, pages))
    for name, errors in seen.items():
        assert len([error for error in errors if "gone wrong" in error["words"]]) == 1, name
        assert len(our_errors(errors)) == noticed, (name, errors)
