"""The plugin inside SGLang's processes: platform, handoff, base-token tree, page transfer."""
