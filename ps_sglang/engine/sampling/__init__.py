"""What a request asks of the sampler, where SGLang's PD mode or its CPU path falls short."""
