"""What only signs can measure: an encoder without training, words no lesson holds, and conditions on the prompt."""
