from capstan_operator.cli import main

raise SystemExit(main())
