"""The components of a run: policy, critic, prompts, rewards, generation, audits, random draws."""
