"""What a run computes with: policy, critic, prompts, rewards, generation, audits, random draws."""
