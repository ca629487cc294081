"""Other people's classifiers of unsafe images, each behind `judge.protocol.Classifier`."""
