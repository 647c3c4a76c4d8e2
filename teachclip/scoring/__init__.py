"""What models are fed with, and what is kept of them: inputs, stored tokens, relevance and frame targets."""
