"""`python -m ehrmamba_hf`, which `accelerate launch -m` needs."""

from ehrmamba_hf.cli import main

if __name__ == "__main__":
    main()
