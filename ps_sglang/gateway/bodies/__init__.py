"""Request and answer bodies: checked, taken apart into samples, put together again."""
