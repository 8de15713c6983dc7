"""`python -m clipvid` is `clipvid`."""

from clipvid.cli.main import main

raise SystemExit(main())
