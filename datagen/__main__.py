"""`python -m datagen`, the form that `accelerate launch -m datagen` needs."""

from datagen.cli import main

if __name__ == "__main__":
    main()
