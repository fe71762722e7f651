"""`python -m sdpo_plugin …`: the commands of `axolotl sdpo …`, on every host and without one."""

from sdpo_plugin.cli import sdpo

if __name__ == "__main__":
    sdpo(prog_name="python -m sdpo_plugin")
