"""``python -m largebatch``: the same program as ``largebatch``, for launchers."""

from largebatch.cli import main

if __name__ == "__main__":
    main()
