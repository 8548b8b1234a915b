"""Examples of your own arms, reward, prompt template and chat template. The pages in rollout_ray/docs describe them."""
