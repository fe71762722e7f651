"""Everything that imports or patches axolotl, trl, transformers, accelerate, deepspeed or peft."""
