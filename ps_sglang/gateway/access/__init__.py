"""Who asks: API keys, the roles and tenants that they stand for, and what their limits are."""
