"""The generator as a policy: loading, conditioning, adapter, rollout."""
