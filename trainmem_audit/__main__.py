"""`python -m trainmem_audit` and the `trainmem-audit` command."""

from trainmem_audit.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
