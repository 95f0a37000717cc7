"""Setting up: the environment (bootstrap), the system's packages, the locks.

Nothing here imports the rest of the package: it runs before anything is installed.
"""
