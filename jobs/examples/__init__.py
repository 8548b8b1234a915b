"""Parts of one's own, one example each: arms, a reward, a prompt template, a chat template. rollout_ray/docs describes them."""
