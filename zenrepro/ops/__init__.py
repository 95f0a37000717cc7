"""Operations: one folder each, with a reference, cases, implementations and one table of them."""
