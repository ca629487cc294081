"""The vision-language judge: loading, rows, training, closed-answer scoring."""
