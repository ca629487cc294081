"""From a taxonomy to annotated images (UnsafeBench, section 3.1): search terms, copies, tasks, votes, agreement."""
