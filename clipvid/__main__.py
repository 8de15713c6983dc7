"""`python -m clipvid` is `clipvid`."""

from clipvid.cli import main

raise SystemExit(main())
