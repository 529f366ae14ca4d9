"""From mentions and entities to tensors: feature spec, tokenizer, pairs, records."""
