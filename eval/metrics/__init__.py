"""Numbers: of arrays, of judged rows, and the intervals and tests that go with them."""
